"""Vision Mamba (Vim), https://arxiv.org/abs/2401.09417 (ICML 2024).

Official: https://github.com/hustvl/Vim at dd0358ad1e42701f22afbefa0717cc8825cf9f45, Apache-2.0.

Kept, as the published weights depend on it: the class token stands in the middle of the sequence, and the average over
directions. Kept for training: directions after the first start with torch's default step projection and a zero bias.
Fixed: position embeddings are resampled around the middle class token (upstream cuts row 0 instead and leaves the class
row in the grid), and any image size works, rectangles included (upstream asserts one size, or a square). The rotary
option turns every patch and never the class token (upstream leaves token 0 alone where the count is odd, whatever it
is), and an image's whole height and width are the same turn at any size.
"""

import torch
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat
from timm.models import register_model
from torch import Tensor

from visionssm.layers import MambaBlock, ScanSpec

from .builder import build, family_cfgs
from .tokens import TokenMamba, insert_tokens
from .tokens import resample_pos_embed as resample_pos_embed

__all__ = ['Vim']

torch.fx.wrap('apply_rot_embed_cat')
torch.fx.wrap('insert_tokens')


class VimBlock(MambaBlock):
    """`MambaBlock` that turns the stream by its position afterwards, if asked to.

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
        mixer_args: Arguments of `MambaMixer`.

    Attributes:
        rotary: Whether it turns the stream.
    """

    def __init__(self, dim: int, drop_path: float, mixer_args: dict, device=None, dtype=None) -> None:
        super().__init__(dim, drop_path, mixer_args, device=device, dtype=dtype)
        self.rotary = False

    def step(self, x: Tensor, walk: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The stream (B, L, C) after the block, and the mixer's output.

        Args:
            x: Stream.
            walk: Visiting orders (K, T) and, with `rotary`, sines and cosines (L, 2 C).
        """
        y = self.mixer(self.norm(x), walk[0])
        x = x + self.drop_path(y)
        return apply_rot_embed_cat(x, walk[1]) if self.rotary else x, y

    def forward(self, x: Tensor, walk: list[Tensor]) -> Tensor:
        """Add the mixer's output to (B, L, C)."""
        return self.step(x, walk)[0]


class Vim(TokenMamba):
    """Vision Mamba: patches with a class token in their middle, Mamba blocks that scan both ways.

    Args:
        img_size: Image size (one side, or height and width) that the position embeddings are for.
        patch_size: Side of a patch.
        stride: Distance between patches; None: `patch_size`.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: 'token' (class token), 'avg' (mean of the patches) or '' (all tokens); None: 'token', or 'avg' if
            there is none.
        embed_dim: Channels.
        depth: Blocks.
        d_state: States N per channel.
        d_conv: Width of the causal convolution.
        expand: Inner channels of the mixer over `embed_dim`.
        scan: Scan order of the patches: name, dict, JSON string or `ScanOrder`. If it does not offer two directions,
            the model has as many sets of scan parameters as it has directions. The class token is met half-way.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        class_token: Whether there is one; upstream's segmentation and detection have none.
        rotary: Turn pairs of the stream's channels by row and column, after the embedding and after every block but the
            last, as upstream's segmentation (small) and detection do.
        features: What `forward_intermediates` gives: 'stream', or 'mixer' as in upstream's segmentation (tiny): what
            the mixer of a block adds to the stream.
        dynamic_img_size: Take images of any size, resampling position embeddings in every forward.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    BLOCK = VimBlock

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        scan: ScanSpec = 'bidirectional',
        local_window: int = 0,
        class_token: bool = True,
        rotary: bool = False,
        features: str = 'stream',
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        if global_pool is None:
            global_pool = 'token' if class_token else 'avg'
        if rotary and embed_dim % 4:
            raise ValueError(f'embed_dim is {embed_dim!r}; with rotary=True allowed are multiples of 4')
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            stride=stride,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_cls_tokens=int(class_token),
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            scan=scan,
            local_window=local_window,
            features=features,
            dynamic_img_size=dynamic_img_size,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        self.rope = None
        if rotary:  # angles of the 14x14 grid of pretraining, stretched to the grid at hand
            self.rope = RotaryEmbeddingCat(
                embed_dim, in_pixels=False, ref_feat_shape=[14, 14], device=device, dtype=dtype
            )
            for block in self.blocks[:-1]:
                block.rotary = True

    @torch.jit.ignore
    def stream_obstacle(self) -> str:
        """The rotary option, which turns pairs of its channels."""
        return '' if self.rope is None else 'the rotary option turns pairs of its channels'

    def _prepare(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, order, size = self._embed(x)
        walk = [order]
        if self.rope is not None:
            angles = self.rope.get_embed(size)
            if self.cls_token is not None:
                still = torch.cat([torch.zeros_like(angles[:1, ::2]), torch.ones_like(angles[:1, ::2])], 1)
                angles = insert_tokens(angles.unsqueeze(0), still.unsqueeze(0)).squeeze(0)
            x = apply_rot_embed_cat(x, angles)
            walk.append(angles)
        return x, walk


checkpoint_filter_fn = Vim.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'vim',
    {'test_vim': {'input_size': (3, 96, 96)}},
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_vim(variant: str, pretrained: bool, args: dict, kwargs: dict) -> Vim:
    return build(Vim, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-Ti: 7 M parameters."""
    return _create_vim('vim_tiny_patch16_224', pretrained, {'embed_dim': 192}, kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-S: 26 M parameters."""
    return _create_vim('vim_small_patch16_224', pretrained, {'embed_dim': 384}, kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-B: 98 M parameters."""
    return _create_vim('vim_base_patch16_224', pretrained, {'embed_dim': 768}, kwargs)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-Ti+: patches every 8 pixels, 730 tokens, fine-tuned from Vim-Ti."""
    return _create_vim('vim_tiny_patch16_stride8_224', pretrained, {'embed_dim': 192, 'stride': 8}, kwargs)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-S+: patches every 8 pixels, 730 tokens, fine-tuned from Vim-S."""
    return _create_vim('vim_small_patch16_stride8_224', pretrained, {'embed_dim': 384, 'stride': 8}, kwargs)


@register_model
def vim_nano(pretrained: bool = False, **kwargs) -> Vim:
    """Not of the paper: trains on a CPU in minutes (for small images give `img_size=32, patch_size=4`)."""
    return _create_vim('vim_nano', pretrained, {'embed_dim': 96, 'depth': 4, 'd_state': 8}, kwargs)


@register_model
def test_vim(pretrained: bool = False, **kwargs) -> Vim:
    """For tests: under 1 M parameters."""
    return _create_vim('test_vim', pretrained, {'embed_dim': 64, 'depth': 4}, kwargs)
