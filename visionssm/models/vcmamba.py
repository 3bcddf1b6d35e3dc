"""VCMamba: Bridging Convolutions with Multi-Directional Mamba, https://arxiv.org/abs/2509.04669 (ICCV 2025 workshop).

Official: https://github.com/Wertyuui345/VCMamba at f8795a002b29f370d527b82479f70640b06ff3cb, which has no licence file.

EfficientFormer's convolutional pyramid, whose last blocks scan as PlainMamba does. Kept, as the published weights
depend on it: what `PathScan` tells of the scan.

Differs from upstream: position embeddings are resampled to the map, where upstream takes one image size alone; and its
segmenters, which do resample, take height, width and channels in the wrong order. Their stem has GELU where the
classifiers' has ReLU: `stem_act='gelu'`.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import (
    DropPath,
    calculate_drop_path_rates,
    get_act_layer,
    lecun_normal_,
    to_2tuple,
    trunc_normal_,
)
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    ConvNorm,
    FastLinears,
    PathScan,
    ScanSpec,
    Stem,
    channels_last,
    check_image_size,
    resample_grid,
    walk_with_moves,
)
from visionssm.scans import get_scan
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .distilled import DistilledHead, DistilledPyramid
from .pyramid import Stage
from .renames import rename

__all__ = ['VCMamba']

torch.fx.wrap('resample_grid')
torch.fx.wrap('walk_with_moves')


class ConvNormStem(Stem):
    """Two 3x3 convolutions of stride 2 with batch norm and activation: tokens (B, H / 4, W / 4, D), rounded up.

    Args:
        in_chans: Image channels.
        dim: Token channels.
        act_layer: The activation.
    """

    def __init__(self, in_chans: int, dim: int, act_layer: str, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv1 = ConvNorm(in_chans, dim // 2, 3, stride=2, bias=True, **dd)
        self.conv2 = ConvNorm(dim // 2, dim, 3, stride=2, bias=True, **dd)
        self.act = get_act_layer(act_layer)()

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        check_image_size(x, self.least)
        x = channels_last(x).permute(0, 2, 3, 1)
        return self.act(self.conv2(self.act(self.conv1(x))))


class ConvNormMlp(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution with batch norms, GELU between, on (B, H, W, C).

    Args:
        dim: Channels in and out; four times as many between.
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.fc1 = ConvNorm(dim, 4 * dim, bias=True, **dd)
        self.conv = ConvNorm(4 * dim, 4 * dim, 3, groups=4 * dim, bias=True, **dd)
        self.fc2 = ConvNorm(4 * dim, dim, bias=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a map."""
        return self.fc2(F.gelu(self.conv(F.gelu(self.fc1(x)))))


class ConvBlock(FastLinears):
    """x + drop_path(scale * mlp(x)), on (B, H, W, C).

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
    """

    def __init__(self, dim: int, drop_path: float, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.mlp = ConvNormMlp(dim, **dd)
        self.scale = nn.Parameter(torch.full((1, 1, dim), 1e-5, **dd))  # with axes upstream's has: it decays
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        return x + self.drop_path(self.scale * self.mlp(x))


class VCMixer(PathScan):
    """Projection with batch norm, convolution and scan, LayerNorm, ReLU, projection with batch norm; no gate.

    Args:
        dim: Channels in and out.
        d_state: States N per channel.
        d_conv: Side of the convolution, odd.
        expand: d_inner / dim.
        scan: Scan order.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Raises:
        ValueError: If `d_conv` is even, or there is no such window.

    Source: arXiv:2509.04669, section 3; Wertyuui345/VCMamba@f8795a0.
    """

    def __init__(
        self,
        dim: int,
        d_state: int,
        d_conv: int,
        expand: float,
        scan: ScanSpec,
        local_window: int,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        d_inner = int(expand * dim)
        super().__init__(d_inner, math.ceil(dim / 16), d_state, d_conv, scan, local_window, **dd)
        self.in_proj = ConvNorm(dim, d_inner, bias=True, **dd)
        self.norm = nn.LayerNorm(d_inner, **dd)
        self.out_proj = ConvNorm(d_inner, dim, bias=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        _, height, width, _ = x.shape
        y = self.convolve_and_scan(self.in_proj(x), walk_with_moves(self.scan, height, width, x))
        return self.out_proj(F.relu(self.norm(y).to(x.dtype)))


class PositionEmbedding(nn.Module):
    """A vector per place of a grid, added to (B, H, W, C); resampled if the map is of another size.

    Args:
        dim: Channels.
        grid_size: Rows and columns of the grid.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int], device=None, dtype=None) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.weight = nn.Parameter(torch.zeros(1, grid_size[0] * grid_size[1], dim, device=device, dtype=dtype))
        if not self.weight.is_meta:  # slow there, and nothing to fill
            trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        size = [x.shape[1], x.shape[2]]
        return x + resample_grid(self.weight, size, self.grid_size).unflatten(1, size)


class VCMambaBlock(FastLinears):
    """Residual block: mixer, then MLP, of which the mixer has a batch norm before it, and so has the MLP.

    Args:
        dim: Channels.
        drop_path: Rate of dropping either branch, per sample.
        mixer_args: Arguments of `VCMixer`.
        pos_embed: Position embeddings, added first.
    """

    def __init__(
        self, dim: int, drop_path: float, mixer_args: dict, pos_embed: nn.Module, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.pos_embed = pos_embed
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.mixer = VCMixer(dim, **mixer_args, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = ConvNormMlp(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = self.pos_embed(x)
        x = x + self.drop_path(self.mixer(self.norm1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return x + self.drop_path(self.mlp(self.norm2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


class VCMamba(DistilledPyramid):
    """VCMamba with two classifiers.

    Args:
        img_size: Image size (one side, or height and width) that the position embeddings are for; others resample them.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifiers.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        mamba_blocks: Last blocks of the last stage, which scan.
        d_state: States N per channel.
        d_conv: Side of the mixer's convolution, odd.
        expand: Inner channels of the mixer over its width.
        stem_act: Activation in the stem: 'relu' in the authors' classifiers, 'gelu' in their segmenters.
        scan: Scan order: name, dict, JSON string or `ScanOrder`. Its directions share all parameters, so that weights
            go with any number of them; four are asked for.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        output_stride: Pixels per token of the last map, 8, 16 or 32: later stages are dilated instead of halved.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    shared_directions = True

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        depths: Sequence[int] = (4, 4, 12, 8),
        dims: Sequence[int] = (32, 64, 144, 288),
        mamba_blocks: int = 4,
        d_state: int = 16,
        d_conv: int = 7,
        expand: float = 2.0,
        stem_act: str = 'relu',
        scan: ScanSpec = 'plainmamba',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        if len(depths) != len(dims):
            raise ValueError(f'depths has {len(depths)} stages and dims {len(dims)}: they must be equal')
        if not 1 <= mamba_blocks <= depths[-1]:
            raise ValueError(f'mamba_blocks is {mamba_blocks!r}; allowed are 1..{depths[-1]}, the last stage')
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 4)
        mixer_args = {'d_state': d_state, 'd_conv': d_conv, 'expand': expand}
        mixer_args |= {'scan': order, 'local_window': local_window}
        height, width = (max(1, math.ceil(side / 32)) for side in to_2tuple(img_size))
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        first = depths[-1] - mamba_blocks
        blocks = [[ConvBlock(dim, rate, **dd) for rate in rates[i]] for i, dim in enumerate(dims)]
        blocks[-1][first:] = [
            VCMambaBlock(
                dims[-1],
                rate,
                mixer_args,
                PositionEmbedding(dims[-1], (height, width), **dd) if i == 0 else nn.Identity(),
                **dd,
            )
            for i, rate in enumerate(rates[-1][first:])
        ]
        super().__init__(
            ConvNormStem(in_chans, dims[0], stem_act, **dd),
            [
                Stage(ConvNorm(dims[i - 1], dim, 3, stride=2, bias=True, **dd) if i else nn.Identity(), blocks[i])
                for i, dim in enumerate(dims)
            ],
            nn.LayerNorm(dims[-1], **dd),
            list(dims),
            4,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            output_stride,
            **dd,
        )
        self.scan_directions = 4
        self.scan = order.to_json()
        self._init_weights()

    def _make_head(self, num_classes: int, global_pool: str, device, dtype) -> nn.Module:
        return DistilledHead(self.num_features, num_classes, global_pool, self.drop_rate, device=device, dtype=dtype)

    def _init_weights(self) -> None:
        if self.norm.weight.is_meta:  # slow there, and nothing to fill
            return
        for module in self.modules():
            if isinstance(module, ConvNormMlp):
                _fill(module.fc1.conv)
                _fill(module.fc2.conv)
            elif isinstance(module, PathScan):  # upstream's model overwrites what its scan starts with
                _fill(module.x_proj)
                _fill(module.dt_proj)
        lecun_normal_(self.stem.conv1.conv.weight)
        lecun_normal_(self.stem.conv2.conv.weight)
        self._init_head()

    def _init_head(self) -> None:
        for head in (self.head.fc, self.head.fc_dist):
            if isinstance(head, nn.Linear):
                _fill(head)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What PlainMamba exempts beside 1-D parameters and biases; what VCMamba's code exempts is not known."""
        exempt = ('pos_embed.weight', 'A_log', 'direction_B')
        return {name for name, _ in self.named_parameters() if name.endswith(exempt)}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'VCMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Position embeddings of another square grid are resampled.
        """
        if 'stem.conv1.conv.weight' not in state_dict:
            state_dict = fit_shapes(rename(state_dict, _RENAMES), model)
        name, embedding = next((f'{n}.weight', x) for n, x in model.named_modules() if isinstance(x, PositionEmbedding))
        x, grid = state_dict.get(name), embedding.grid_size
        if 'pos_embed' in state_dict:  # (1, C, H, W)
            x, old = state_dict['pos_embed'].flatten(2).transpose(1, 2), state_dict['pos_embed'].shape[2:]
            state_dict = {key: value for key, value in state_dict.items() if key != 'pos_embed'}
        elif x is not None:
            old = grid if x.shape == embedding.weight.shape else [math.isqrt(x.shape[1])] * 2
        if x is not None:
            if tuple(old) != grid and old[0] * old[1] == x.shape[1]:
                x = resample_grid(x, list(grid), list(old))
            state_dict = {**state_dict, name: x}
        return state_dict


def _fill(linear: nn.Linear) -> None:
    trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _place(match: re.Match) -> str:
    """Our place of `network.I`, whose even numbers are stages."""
    stage = (int(match[1]) + 1) // 2
    return f'stages.{stage}.downsample.' if int(match[1]) % 2 else f'stages.{stage}.blocks.'


_CONV_NORMS = {'fc1': 'fc1.conv', 'norm1': 'fc1.bn', 'mid': 'conv.conv', 'mid_norm': 'conv.bn'}
_CONV_NORMS |= {'fc2': 'fc2.conv', 'norm2': 'fc2.bn'}
_RENAMES = [
    (r'^backbone\.', ''),
    (r'^patch_embed\.([0134])\.', lambda m: f'stem.conv{int(m[1]) // 3 + 1}.{"bn" if int(m[1]) % 3 else "conv"}.'),
    (r'^network\.(\d)\.', _place),
    (r'\.downsample\.proj\.', '.downsample.conv.'),
    (r'\.downsample\.norm\.', '.downsample.bn.'),
    (r'\.mlp\.(fc1|norm1|mid|mid_norm|fc2|norm2)\.', lambda match: f'.mlp.{_CONV_NORMS[match[1]]}.'),
    (r'\.layer_scale_2$', '.scale'),
    (r'(\.blocks\.\d+)\.norm\.', r'\1.norm1.'),
    (r'\.mamba\.in_conv\.0\.', '.mixer.in_proj.conv.'),
    (r'\.mamba\.in_conv\.1\.', '.mixer.in_proj.bn.'),
    (r'\.mamba\.out_conv\.1\.', '.mixer.out_proj.conv.'),
    (r'\.mamba\.out_conv\.2\.', '.mixer.out_proj.bn.'),
    (r'\.mamba\.conv2d\.', '.mixer.conv.'),
    (r'\.mamba\.direction_Bs$', '.mixer.direction_B'),
    (r'\.mamba\.', '.mixer.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
    (r'^dist_head\.', 'head.fc_dist.'),
]


checkpoint_filter_fn = VCMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'vcmamba',
    {'test_vcmamba': {'input_size': (3, 96, 96), 'pool_size': (3, 3)}},
    pool_size=(7, 7),
    first_conv='stem.conv1.conv',
    classifier=('head.fc', 'head.fc_dist'),
)


def _create_vcmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> VCMamba:
    return build(VCMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def vcmamba_s(pretrained: bool = False, **kwargs) -> VCMamba:
    """VCMamba-S: 10 M parameters."""
    args = {'depths': (4, 4, 12, 8), 'dims': (32, 64, 144, 288)}
    return _create_vcmamba('vcmamba_s', pretrained, args, kwargs)


@register_model
def vcmamba_m(pretrained: bool = False, **kwargs) -> VCMamba:
    """VCMamba-M: 21 M parameters."""
    args = {'depths': (4, 4, 12, 6), 'dims': (48, 96, 224, 448)}
    return _create_vcmamba('vcmamba_m', pretrained, args, kwargs)


@register_model
def vcmamba_b(pretrained: bool = False, **kwargs) -> VCMamba:
    """VCMamba-B: 31 M parameters."""
    args = {'depths': (4, 4, 12, 6), 'dims': (64, 128, 320, 512)}
    return _create_vcmamba('vcmamba_b', pretrained, args, kwargs)


@register_model
def test_vcmamba(pretrained: bool = False, **kwargs) -> VCMamba:
    """For tests: under 1 M parameters."""
    args = {'img_size': 96, 'depths': (1, 1, 1, 2), 'dims': (16, 24, 32, 48), 'mamba_blocks': 1}
    return _create_vcmamba('test_vcmamba', pretrained, args, kwargs)
