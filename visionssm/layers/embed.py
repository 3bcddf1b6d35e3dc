"""Stems, downsampling and patch embeddings shared by the families; tokens come out channels-last."""

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, to_2tuple
from torch import Tensor, nn


def check_image_size(x: Tensor, minimum: int, size: tuple[int, int] | None = None) -> None:
    """Reject images that the model can't take.

    Compiled, exported, scripted and traced code skips the check: there it would tie the graph to the example's size.

    Args:
        x: Images, (B, C, H, W).
        minimum: Least height and width.
        size: The only (height, width) allowed; None: any.

    Raises:
        ValueError: If the size is below the least or not the one allowed; the message has both.
    """
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
        if isinstance(x, torch.fx.Proxy):
            return
        height, width = x.shape[-2:]
        if min(height, width) < minimum:
            raise ValueError(f'the image is {height}x{width}; the least is {minimum}x{minimum}')
        if size is not None and (height, width) != tuple(size):
            raise ValueError(
                f'the image is {height}x{width} and the model was made for {size[0]}x{size[1]}; build it with '
                'dynamic_img_size=True or img_size=, or call set_input_size'
            )


def channels_last(x: Tensor) -> Tensor:
    """Images (B, C, H, W) with channels next to each other in memory; this form also works under `torch.vmap`."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@torch.fx.wrap
@register_notrace_function
def resample_grid(rows: Tensor, new_size: list[int], old_size: list[int]) -> Tensor:
    """Position embeddings of one grid for another: bicubic, without antialiasing, as timm's `resample_abs_pos_embed`.

    That one leaves rows of the size wanted as they are in traced programs, too, which then take no other.

    Args:
        rows: (1, H W, C).
        new_size: H' and W'.
        old_size: H and W.

    Returns:
        (1, H' W', C), dtype of `rows`.
    """
    height, width = new_size
    if isinstance(height, int) and isinstance(width, int):  # noqa: SIM102  compiled graphs would be tied to one height
        if height * width == old_size[0] * old_size[1] and height == old_size[0]:
            return rows
    grid = rows.float().reshape(1, old_size[0], old_size[1], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, [height, width], mode='bicubic')
    return grid.flatten(2).transpose(1, 2).to(rows.dtype)


class Stem(nn.Module):
    """The first layers of a pyramid: images (B, C, H, W) to tokens (B, H / p, W / p, D).

    Attributes:
        least: Least height and width of an image.
        step: How many pixels a side may grow by at a time without leaving any out at the border.
    """

    def __init__(self) -> None:
        super().__init__()
        self.least, self.step = 1, 1


def whole_side(embed: nn.Module, side: int) -> int:
    """The least side, from `side` on, of images that a `Stem` or `GridEmbed` takes without leaving pixels out."""
    return embed.least + max(0, math.ceil((side - embed.least) / embed.step)) * embed.step


class PatchStem(Stem):
    """Non-overlapping convolution and LayerNorm: images (B, C, H, W) to tokens (B, H / p, W / p, D), rounded down.

    Args:
        in_chans: Image channels.
        dim: Token channels.
        patch_size: p.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.least = self.step = patch_size
        self.conv = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        check_image_size(x, self.least)
        # so the tokens are contiguous channels-last from here on
        x = self.conv(channels_last(x))
        return self.norm(x.permute(0, 2, 3, 1))


class OverlapStem(Stem):
    """Two 3x3 convolutions, LayerNorm after each and GELU between: tokens (B, H / p, W / p, D), rounded up.

    Args:
        in_chans: Image channels.
        dim: Token channels.
        patch_size: Stride p of both together: 1, 2 or 4.

    Raises:
        ValueError: If `patch_size` is none of these.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        if patch_size not in (1, 2, 4):
            raise ValueError(f'patch_size is {patch_size!r}; the overlap stem allows 1, 2 and 4')
        dd = {'device': device, 'dtype': dtype}
        first, second = (2, 2) if patch_size == 4 else (patch_size, 1)
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=first, padding=1, **dd)
        self.norm1 = nn.LayerNorm(dim // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=second, padding=1, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        check_image_size(x, self.least)
        x = self.conv1(channels_last(x))
        x = self.act(self.norm1(x.permute(0, 2, 3, 1)))
        x = self.conv2(x.permute(0, 3, 1, 2))
        return self.norm2(x.permute(0, 2, 3, 1))


def spread(conv: nn.Conv2d, dilation: int) -> None:
    """Let a convolution that is padded to keep the size read pixels that are `dilation` apart."""
    conv.dilation = (dilation, dilation)
    conv.padding = tuple(dilation * (side // 2) for side in conv.kernel_size)


@torch.fx.wrap
@register_notrace_function
def to_convolve(x: Tensor, weights: int) -> Tensor:
    """A map (B, H, W, C) as a convolution takes it, (B, C, H, W).

    On a CPU in eager mode it is copied where it has fewer values than the kernel, `weights`: torch brings these into
    the layout of the map in every call, and a channels-last one costs them most.
    """
    x = x.permute(0, 3, 1, 2)
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and x.is_cpu and x.numel() < weights:
            return x.contiguous()
    return x


class ConvDownsample(nn.Module):
    """3x3 convolution of stride 2 and LayerNorm: (B, H, W, C) to (B, H / 2, W / 2, D), rounded up.

    Args:
        dim: Channels in.
        out_dim: Channels out.
        bias: Whether the convolution has a bias.
        norm: Whether there is a norm.
    """

    def __init__(self, dim: int, out_dim: int, bias: bool = True, norm: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=bias, **dd)
        self.norm = nn.LayerNorm(out_dim, **dd) if norm else nn.Identity()
        self.weights = self.conv.weight.numel()

    @torch.jit.ignore
    def keep_size(self, dilation: int) -> None:
        """Do not halve the map; read pixels that are `dilation` apart."""
        self.conv.stride = (1, 1)
        spread(self.conv, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        return self.norm(self.conv(to_convolve(x, self.weights)).permute(0, 2, 3, 1))


class GridEmbed(nn.Module):
    """An embedding that knows the image size, and thus the grid, that its model is made for.

    A subclass sets `reduction`, `least` and, if patches must fit, `step`, defines `dynamic_feat_size` and calls
    `set_input_size`.

    Attributes:
        reduction: Pixels per token along a side.
        least: Least height and width of an image.
        step: How many pixels a side may grow by at a time without leaving any out at the border.
        img_size: Height and width that the model is made for.
        grid_size: Rows and columns of tokens that such images give.
        num_patches: Their number.
    """

    step: int = 1

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Note the image size and the grid that follows from it.

        Raises:
            ValueError: If the size is below the least.
        """
        height, width = to_2tuple(img_size)
        if min(height, width) < self.least:
            raise ValueError(f'img_size is {height}x{width}; the least is {self.least}x{self.least}')
        self.img_size = (height, width)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self) -> int:
        """Pixels per token along a side."""
        return self.reduction

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid that images of `img_size` give."""
        raise NotImplementedError


class StridedPatchEmbed(GridEmbed):
    """Patches of `patch_size` every `stride` pixels as tokens (B, H', W', D), H' = (H - patch_size) // stride + 1.

    timm's `PatchEmbed` has no stride of its own. The model checks the image size.

    Args:
        img_size: Height and width that the model is made for.
        patch_size: Side of a patch.
        stride: Distance between patches; at most `patch_size`.
        in_chans: Image channels.
        embed_dim: Token channels.

    Raises:
        ValueError: If the stride is not in 1..patch_size or the image is smaller than a patch.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        stride: int,
        in_chans: int,
        embed_dim: int,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if not 1 <= stride <= patch_size:
            raise ValueError(f'stride is {stride!r}; allowed are 1..{patch_size}, the patch size')
        self.patch_size = to_2tuple(patch_size)
        self.stride = to_2tuple(stride)
        self.reduction, self.least, self.step = stride, patch_size, stride
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=stride, device=device, dtype=dtype)
        self.set_input_size(img_size)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid that images of `img_size` give."""
        return (
            (img_size[0] - self.patch_size[0]) // self.stride[0] + 1,
            (img_size[1] - self.patch_size[1]) // self.stride[1] + 1,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W)."""
        return self.proj(channels_last(x)).permute(0, 2, 3, 1)
