"""PlainMamba, https://arxiv.org/abs/2403.17695 (BMVC 2024).

Official: https://github.com/ChenhongyiYang/PlainMamba at 0975a1d0d8bca50e7b85cf15e53de2a383ae12a0, Apache-2.0.

Kept, as the published weights depend on it: along a path only the convolved tokens are permuted, so step t takes its
step size, B and C from token t in raster order, whichever token it visits; the bias of dt_proj counts twice, in the
projection and as the bias of the scan; the directions are summed, not averaged.
Fixed: upstream's trainer overwrites every linear layer when training starts and so loses the step initialisation;
here all but `dt_proj` are overwritten.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, calculate_drop_path_rates, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    GridEmbed,
    Linear,
    PathScan,
    ScanSpec,
    check_image_size,
    init_dt_bias,
    resample_grid,
    walk_with_moves,
)
from visionssm.scans import get_scan

from .builder import build, family_cfgs
from .isotropic import Isotropic, fit_pos_embed
from .renames import rename

__all__ = ['PlainMamba']

torch.fx.wrap('resample_grid')


class ConvPatchEmbed(GridEmbed):
    """Convolutions at half resolution, then patches: images (B, C, H, W) to tokens (B, H / p, W / p, D), rounded up.

    Args:
        img_size: Height and width that the model is made for.
        patch_size: Pixels p per token along a side, even.
        in_chans: Image channels.
        embed_dim: Token channels.
        width: Channels of the convolutions.
        convs: 3x3 convolutions after the first, which is 7x7 of stride 2.

    Raises:
        ValueError: If `patch_size` is odd or below 2.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        width: int = 64,
        convs: int = 1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if patch_size < 2 or patch_size % 2:
            raise ValueError(f'patch_size is {patch_size!r}; allowed are even numbers from 2')
        dd = {'device': device, 'dtype': dtype}
        self.reduction, self.least = patch_size, 1
        self.patch = patch_size // 2  # the first convolution halves the image
        self.stem = ConvNormAct(in_chans, width, 7, stride=2, **dd)
        self.convs = nn.Sequential(*(ConvNormAct(width, width, 3, **dd) for _ in range(convs)))
        self.proj = nn.Conv2d(width, embed_dim, self.patch, stride=self.patch, **dd)
        self.set_input_size(img_size)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid that images of `img_size` give."""
        return math.ceil(img_size[0] / self.reduction), math.ceil(img_size[1] / self.reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        # not made channels-last: that is 25 % faster, but rounds otherwise, and the few ReLUs that flip with it move
        # gradients here by 3e-4; images that come channels-last stay so
        x = self.convs(self.stem(x))
        _, _, height, width = x.shape
        right, bottom = (self.patch - width % self.patch) % self.patch, (self.patch - height % self.patch) % self.patch
        return self.proj(F.pad(x, [0, right, 0, bottom])).permute(0, 2, 3, 1).contiguous()


class PlainMambaMixer(PathScan):
    """Gated mixer: projection, depthwise convolution, selective scan along all directions, summed; projection back.

    Args:
        dim: Channels in and out.
        d_state: States N per channel.
        d_conv: Side of the convolution, odd.
        expand: d_inner / dim.
        scan: Scan order.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Raises:
        ValueError: If `d_conv` is even, or there is no such window.

    Source: arXiv:2403.17695, section 3.2; ChenhongyiYang/PlainMamba@0975a1d.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 7,
        expand: float = 2.0,
        scan: ScanSpec = 'plainmamba',
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        d_inner = int(expand * dim)
        super().__init__(d_inner, math.ceil(dim / 16), d_state, d_conv, scan, local_window, **dd)
        self.in_proj = Linear(dim, 2 * d_inner, **dd)
        self.out_proj = Linear(d_inner, dim, **dd)
        self._init_weights()

    def _init_weights(self) -> None:
        if self.D.is_meta:  # slow there, and nothing to fill
            return
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        bound = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        init_dt_bias(self.dt_proj.bias)

    def forward(self, x: Tensor, walk: Tensor) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, (B, H, W, C).
            walk: Visiting orders and the moves to each token, (2, K, T).
        """
        x, z = self.in_proj(x).chunk(2, -1)
        return self.out_proj(self.convolve_and_scan(x, walk, z))


class PlainMambaBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), then maybe a depthwise convolution, BatchNorm and GELU in place of the result.

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
        conv: Whether the convolution is there.
        mixer_args: Arguments of `PlainMambaMixer`.
    """

    def __init__(self, dim: int, drop_path: float, conv: bool, mixer_args: dict, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = PlainMambaMixer(dim, **mixer_args, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.has_conv = conv
        self.conv = ConvNormAct(dim, dim, 3, groups=dim, act_layer=nn.GELU, **dd) if conv else nn.Identity()

    @torch.jit.ignore
    def projected_norms(self) -> list[tuple[nn.Module, nn.Linear]]:
        """Norms, each with the one linear layer that reads it."""
        return [(self.norm, self.mixer.in_proj)]

    def forward(self, x: Tensor, walk: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = x + self.drop_path(self.mixer(self.norm(x), walk))
        if self.has_conv:
            x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class PlainMamba(Isotropic):
    """PlainMamba: a convolutional embedding, then blocks that scan along paths without jumps. Maps are channels-last.

    Takes images of any size: position embeddings are resampled in every forward.

    Args:
        img_size: Image size (one side, or height and width) that the position embeddings are for.
        patch_size: Pixels per token along a side, even.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: 'avg' or '' (the map).
        embed_dim: Channels.
        depth: Blocks.
        stem_convs: 3x3 convolutions in the embedding.
        conv_blocks: Blocks that end with a depthwise convolution.
        d_state: States N per channel.
        d_conv: Side of the mixer's convolution, odd.
        expand: Inner channels of the mixer over `embed_dim`.
        scan: Scan order: name, dict, JSON string or `ScanOrder`. Its directions share all parameters, so that weights
            go with any number of them; four are asked for.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    final_norm = r'(?:backbone\.)?(?:ln1|norm)\.(\w+)'
    shared_directions = True
    takes_adapter = True

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dim: int = 192,
        depth: int = 24,
        stem_convs: int = 2,
        conv_blocks: Sequence[int] = (),
        d_state: int = 16,
        d_conv: int = 7,
        expand: float = 2.0,
        scan: ScanSpec = 'plainmamba',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        if not set(conv_blocks) <= set(range(depth)):
            raise ValueError(f'conv_blocks is {conv_blocks!r}; allowed are 0..{depth - 1}')
        super().__init__(embed_dim, depth, patch_size, in_chans, num_classes, global_pool)
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 4)
        self.output_fmt = 'NHWC'
        self.scan_directions = 4
        self.scan = order.to_json()
        self.patch_embed = ConvPatchEmbed(img_size, patch_size, in_chans, embed_dim, convs=stem_convs, **dd)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim, **dd))
        mixer_args = {
            'd_state': d_state,
            'd_conv': d_conv,
            'expand': expand,
            'scan': order,
            'local_window': local_window,
        }
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            PlainMambaBlock(embed_dim, rate, i in conv_blocks, mixer_args, **dd) for i, rate in enumerate(rates)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes, device, dtype)
        trunc_normal_(self.pos_embed, std=0.02)
        if num_classes > 0:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    @torch.jit.ignore
    def stream_obstacle(self) -> str:
        """Convolutions that take the stream's place."""
        convs = [i for i, block in enumerate(self.blocks) if block.has_conv]
        return f'blocks {convs} end with a convolution' if convs else ''

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_image_size(x, 1)
        x = self.patch_embed(x)
        _, height, width, _ = x.shape
        size = [height, width]
        pos_embed = resample_grid(self.pos_embed, size, self.patch_embed.grid_size)
        return x + pos_embed.unflatten(1, size), walk_with_moves(self.scan, height, width, x)

    def _pool(self, x: Tensor) -> Tensor:
        return x.mean((1, 2)) if self.global_pool == 'avg' else x

    @torch.jit.ignore
    def _spatial(self, x: Tensor, height: int, width: int) -> Tensor:
        return x

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What upstream exempts beside 1-D parameters and biases, which timm's rule covers."""
        scans = (name for name, m in self.named_modules() if isinstance(m, PlainMambaMixer))
        return {'pos_embed'} | {f'{name}.{parameter}' for name in scans for parameter in ('A_log', 'direction_B')}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'PlainMamba') -> dict[str, Tensor]:
        """Upstream names to ours, one tensor for one; position embeddings of another grid are resampled.

        The `ema_*` buffers are left out: upstream swaps the averaged weights into the model before it saves.

        Raises:
            ValueError: If the grid that the position embeddings are for is not known.
        """
        if any('.mamba.' in name for name in state_dict):
            state_dict = rename({name: x for name, x in state_dict.items() if not name.startswith('ema_')}, _RENAMES)
        return fit_pos_embed(state_dict, model)


_RENAMES = (
    (r'^backbone\.', ''),
    (r'^head\.fc\.', 'head.'),
    (r'^ln1\.', 'norm.'),
    (r'^layers\.(\d+)\.dw\.', r'blocks.\1.conv.'),
    (r'^layers\.', 'blocks.'),
    (r'\.mamba\.conv2d\.', '.mixer.conv.'),
    (r'\.mamba\.direction_Bs$', '.mixer.direction_B'),
    (r'\.mamba\.', '.mixer.'),
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    # convolution, BatchNorm, ReLU: three entries of one nn.Sequential each time
    (r'^patch_embed\.convs\.(\d+)\.', lambda m: f'patch_embed.convs.{int(m[1]) // 3}.{int(m[1]) % 3}.'),
    (r'(^patch_embed\.(?:stem|convs\.\d+)|^blocks\.\d+\.conv)\.0\.', r'\1.conv.'),
    (r'(^patch_embed\.(?:stem|convs\.\d+)|^blocks\.\d+\.conv)\.1\.', r'\1.bn.'),
)


checkpoint_filter_fn = PlainMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'plainmamba',
    {'test_plainmamba': {'input_size': (3, 96, 96), 'pool_size': (6, 6)}},
    pool_size=(14, 14),
    first_conv='patch_embed.stem.conv',
    classifier='head',
)


def _create_plainmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> PlainMamba:
    return build(PlainMamba, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters."""
    args = {'embed_dim': 192, 'stem_convs': 1, 'conv_blocks': (0,)}
    return _create_plainmamba('plainmamba_l1', pretrained, args, kwargs)


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs) -> PlainMamba:
    """PlainMamba-L2: 26 M parameters."""
    return _create_plainmamba('plainmamba_l2', pretrained, {'embed_dim': 384}, kwargs)


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs) -> PlainMamba:
    """PlainMamba-L3: 51 M parameters."""
    return _create_plainmamba('plainmamba_l3', pretrained, {'embed_dim': 448, 'depth': 36}, kwargs)


@register_model
def plainmamba_nano(pretrained: bool = False, **kwargs) -> PlainMamba:
    """Not of the paper: trains on a CPU in minutes (for small images give `img_size=32, patch_size=4`)."""
    args = {'embed_dim': 96, 'depth': 6, 'stem_convs': 1}
    return _create_plainmamba('plainmamba_nano', pretrained, args, kwargs)


@register_model
def test_plainmamba(pretrained: bool = False, **kwargs) -> PlainMamba:
    """For tests: under 1 M parameters."""
    args = {'img_size': 96, 'embed_dim': 64, 'depth': 4, 'stem_convs': 1, 'conv_blocks': (0,)}
    return _create_plainmamba('test_plainmamba', pretrained, args, kwargs)
