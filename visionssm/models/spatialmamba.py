"""Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion, https://arxiv.org/abs/2410.15091.

Official: https://github.com/EdwardChasel/Spatial-Mamba at 71221ebfaa5fe797445be0292f0ec7048fe457c1, Apache-2.0.

One raster scan per mixer, whose states three dilated convolutions fuse before they are read: neighbours on the map meet
that are far apart on the path.

Kept, as the published weights depend on it: the fusion pads with copies of the border in training and with zeros in
evaluation, which is what the published accuracy was measured with; stem and downsampling are those of MLLA, and the
inner convolutions of the latter have biases and no norm.

Differs from upstream: maps are channels-last throughout and 1x1 convolutions are linear layers; the kernel that stands
for the three in evaluation follows the weights, where upstream keeps the first one that it made; scans in several
directions are allowed: their states are fused by the same kernels and summed.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, register_notrace_module
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    BottleneckDownsample,
    BottleneckStem,
    Linear,
    PositionedBlock,
    ScanSpec,
    StateScan,
)
from visionssm.scans import ScanOrder, get_scan
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .pyramid import Pyramid, Stage, init_linear
from .renames import MLLA_RENAMES, SCAN_RENAMES, rename

__all__ = ['SpatialMamba']


@register_notrace_module  # one node, the same in training and evaluation
class StateFusion(nn.Module):
    """The weighted sum of three depthwise 3x3 convolutions, of dilation 1, 3 and 5, on (B, H, W, C).

    Args:
        dim: Channels.

    Attributes:
        spacing: What the dilations are multiplied by.

    Source: arXiv:2410.15091, section 4.2 (structure-aware state fusion).
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.dim, self.spacing = dim, 1
        self.kernel1 = nn.Parameter(torch.ones(dim, 1, 3, 3, **dd))
        self.kernel3 = nn.Parameter(torch.ones(dim, 1, 3, 3, **dd))
        self.kernel5 = nn.Parameter(torch.ones(dim, 1, 3, 3, **dd))
        self.alpha = nn.Parameter(torch.ones(3, **dd))

    @torch.jit.ignore
    def spread(self, spacing: int) -> None:
        """Read pixels that are `spacing` times as far apart."""
        self.spacing = spacing

    def forward(self, x: Tensor) -> Tensor:
        """Fuse a map: with copies of its border around it in training, with zeros in evaluation."""
        x = x.permute(0, 3, 1, 2)
        if self.training:
            y = self._fuse(x, self.kernel1 * self.alpha[0], 1)
            y = y + self._fuse(x, self.kernel3 * self.alpha[1], 3)
            y = y + self._fuse(x, self.kernel5 * self.alpha[2], 5)
        else:
            y = F.conv2d(x, self.merged(), padding=5 * self.spacing, dilation=self.spacing, groups=x.shape[1])
        return y.permute(0, 2, 3, 1)

    def _fuse(self, x: Tensor, kernel: Tensor, dilation: int) -> Tensor:
        dilation = dilation * self.spacing
        return F.conv2d(F.pad(x, [dilation] * 4, mode='replicate'), kernel, dilation=dilation, groups=x.shape[1])

    def merged(self) -> Tensor:
        """The one kernel (C, 1, 11, 11) that does what the three do: faster where nothing is learnt."""
        kernel = _widen(self.kernel1 * self.alpha[0], 1) + _widen(self.kernel3 * self.alpha[1], 3)
        kernel = kernel + _widen(self.kernel5 * self.alpha[2], 5)
        return kernel.reshape(self.dim, 1, 11, 11)  # exporters ask for constants


def _widen(kernel: Tensor, dilation: int) -> Tensor:
    """A kernel (C, 1, 3, 3) of that dilation as one of 11x11, with zeros between its values and around them."""
    gap, before, after = dilation - 1, 5 - dilation, 6 - 2 * dilation
    spaced = F.pad(kernel.unsqueeze(3).unsqueeze(5), [0, gap, 0, 0, 0, gap]).flatten(4, 5).flatten(2, 3)
    return F.pad(spaced, [before, after, before, after])


class SpatialMixer(StateScan):
    """Gated scan of one state per channel, with the states fused on the map before C reads them.

    Args:
        dim: Channels C.
        expand: Inner channels over C.
        scan: Scan order; it decides the number of parameter sets.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Source: arXiv:2410.15091, section 4.3 (SASF block).
    """

    def __init__(self, dim: int, expand: int, scan: ScanOrder, local_window: int = 0, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        d_inner = expand * dim
        super().__init__(d_inner, 3, math.ceil(dim / 16), scan, local_window, **dd)
        self.in_proj = Linear(dim, 2 * d_inner, bias=False, **dd)
        self.fusion = StateFusion(d_inner, **dd)
        self.norm = nn.LayerNorm(d_inner, **dd)
        self.out_proj = Linear(d_inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, H, W, C)."""
        height, width = x.shape[1], x.shape[2]
        u, z = self.in_proj(x).chunk(2, -1)
        states, C, skip = self.states(u)
        directions = C.shape[2]
        fused = self.fusion(states.permute(0, 3, 1, 2, 4).flatten(0, 1))  # [B K, H, W, D]
        fused = fused.flatten(1, 2).unflatten(0, (-1, directions)).transpose(1, 2)  # [B, L, K, D]
        y = ((fused * C).sum(2) + skip).to(u.dtype)
        y = self.norm(y).to(u.dtype).unflatten(1, (height, width))
        return self.out_proj(y * F.silu(z))


class SpatialMamba(Pyramid):
    """Spatial-Mamba.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        expand: Inner channels of the mixers over their width.
        mlp_ratio: Hidden / width of the MLPs.
        scan: Scan order of all mixers: name, dict, JSON string or `ScanOrder`. If it does not offer one direction, the
            model has as many sets of scan parameters as it has directions.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        output_stride: Pixels per token of the last map, 8, 16 or 32: later stages are dilated instead of halved.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        depths: Sequence[int] = (2, 4, 8, 4),
        dims: Sequence[int] = (64, 128, 256, 512),
        expand: int = 2,
        mlp_ratio: float = 4.0,
        scan: ScanSpec = 'raster',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        if len(depths) != len(dims):
            raise ValueError(f'depths has {len(depths)} stages and dims {len(dims)}: they must be equal')
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 1)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(dim: int, rate: float) -> nn.Module:
            return PositionedBlock(dim, SpatialMixer(dim, expand, order, local_window, **dd), mlp_ratio, rate, **dd)

        stages = [
            Stage(
                BottleneckDownsample(dims[i - 1], dim, **dd) if i else nn.Identity(),
                [block(dim, rate) for rate in rates[i]],
            )
            for i, dim in enumerate(dims)
        ]
        super().__init__(
            BottleneckStem(in_chans, dims[0], **dd),
            stages,
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
        self.scan_directions = order.directions
        self.scan = order.to_json()
        self.apply(init_linear)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Skips and biases of the steps: flat and so exempt upstream, (K, D) here."""
        return self.scan_parameters('D', 'dt_proj_bias')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'SpatialMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes the classification code's names, and those of detection or segmentation backbones (`backbone.`).
        """
        if 'stages.0.blocks.0.mixer.in_proj.weight' in state_dict:
            return state_dict
        return fit_shapes(rename(state_dict, _RENAMES), model)


_KERNELS = {'3': '1', '3_1': '3', '3_2': '5'}  # upstream counts; here it is the dilation
_RENAMES = [
    *MLLA_RENAMES,
    (r'\.ln_([12])\.', r'.norm\1.'),
    (r'\.self_attention\.', '.mixer.'),
    (r'\.state_fusion\.kernel_(\w+)$', lambda match: f'.fusion.kernel{_KERNELS.get(match[1], match[1])}'),
    (r'\.state_fusion\.', '.fusion.'),
    *SCAN_RENAMES,
]


checkpoint_filter_fn = SpatialMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'spatialmamba',
    {'test_spatialmamba': {'input_size': (3, 96, 96), 'pool_size': (3, 3)}},
    pool_size=(7, 7),
    first_conv='stem.conv1.conv',
    classifier='head.fc',
)


def _create_spatialmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> SpatialMamba:
    return build(SpatialMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def spatialmamba_tiny(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """Spatial-Mamba-T: 27 M parameters."""
    return _create_spatialmamba('spatialmamba_tiny', pretrained, {'depths': (2, 4, 8, 4)}, kwargs)


@register_model
def spatialmamba_small(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """Spatial-Mamba-S: 43 M parameters."""
    return _create_spatialmamba('spatialmamba_small', pretrained, {'depths': (2, 4, 21, 5)}, kwargs)


@register_model
def spatialmamba_base(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """Spatial-Mamba-B: 96 M parameters."""
    args = {'depths': (2, 4, 21, 5), 'dims': (96, 192, 384, 768)}
    return _create_spatialmamba('spatialmamba_base', pretrained, args, kwargs)


@register_model
def test_spatialmamba(pretrained: bool = False, **kwargs) -> SpatialMamba:
    """For tests: under 1 M parameters."""
    args = {'depths': (1, 1, 2, 1), 'dims': (16, 32, 64, 128), 'mlp_ratio': 2.0}
    return _create_spatialmamba('test_spatialmamba', pretrained, args, kwargs)
