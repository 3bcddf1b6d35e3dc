"""VSSD: Vision Mamba with Non-Causal State Space Duality, https://arxiv.org/abs/2407.18559.

Official: https://github.com/YuHengsss/VSSD at 87b753b356dd0cd176a6356fdb82fa536d8435eb, which has no licence file.

Nothing is scanned: the state is one sum over all tokens of the image, which every token then reads, so that no order
matters and none is taken. The last stage has attention.

Kept, as the published weights depend on it: the gate has no activation; the downsampling's inner convolutions have
biases and no norm; stem and downsampling are those of MLLA.

Differs from upstream: maps are channels-last throughout and 1x1 convolutions are linear layers; odd maps round up in
classifiers as well, where upstream fails.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    BottleneckDownsample,
    BottleneckStem,
    DepthwiseConv,
    FastLinears,
    Linear,
    PositionedBlock,
    ScanSpec,
    SelfAttention,
    at_least_fp32,
    decay_rates,
    init_dt_bias,
)
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .pyramid import Pyramid, Stage, init_linear
from .renames import MLLA_RENAMES, rename

__all__ = ['VSSD']

torch.fx.wrap('at_least_fp32')
torch.fx.wrap('decay_rates')


class NonCausalSSD(FastLinears):
    """State space duality without an order: per head one state, summed over all tokens and read by each.

    Args:
        dim: Channels C.
        num_heads: Heads.
        d_state: Rows N of a head's state.
        expand: Inner channels over C.

    Source: arXiv:2407.18559, section 3.2 (NC-SSD).
    """

    def __init__(self, dim: int, num_heads: int, d_state: int = 64, expand: int = 2, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        d_inner = expand * dim
        self.num_heads = num_heads
        self.split = [d_inner, d_inner + 2 * d_state, num_heads]
        self.parts = [d_inner, d_state, d_state]
        self.in_proj = Linear(dim, sum(self.split), bias=False, **dd)
        self.conv = DepthwiseConv(d_inner + 2 * d_state, 3, **dd)
        self.dt_bias = nn.Parameter(torch.empty(num_heads, **dd))
        self.A_log = nn.Parameter(torch.empty(num_heads, **dd))
        self.D = nn.Parameter(torch.ones(num_heads, **dd))
        self.norm = nn.LayerNorm(d_inner, **dd)
        self.out_proj = Linear(d_inner, dim, bias=False, **dd)
        if not self.A_log.is_meta:
            init_dt_bias(self.dt_bias)
            with torch.no_grad():
                self.A_log.uniform_(1, 16).log_()

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, H, W, C)."""
        height, width = x.shape[1], x.shape[2]
        z, u, dt = self.in_proj(x).split(self.split, -1)
        u, B, C = F.silu(self.conv(u)).flatten(1, 2).split(self.parts, -1)
        dt = F.softplus(at_least_fp32(dt.flatten(1, 2)) + at_least_fp32(self.dt_bias))
        u = at_least_fp32(u).unflatten(2, (self.num_heads, -1))  # [B, L, heads, P]
        weighted = u * (dt * -decay_rates(self.A_log)).unsqueeze(3)
        # sums over tokens are not normalised: fp16 would overflow
        state = at_least_fp32(B).transpose(1, 2) @ weighted.flatten(2)  # [B, N, heads P]
        y = (at_least_fp32(C) @ state).unflatten(2, (self.num_heads, -1))
        y = (y + u * at_least_fp32(self.D).unsqueeze(1)).flatten(2).unflatten(1, (height, width))
        return self.out_proj(self.norm(y.to(x.dtype)) * z)


class MapAttention(nn.Module):
    """Attention of all tokens of (B, H, W, C).

    Args:
        dim: Channels.
        num_heads: Heads; they divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None) -> None:
        super().__init__()
        self.attn = SelfAttention(dim, num_heads, qkv_bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        return self.attn(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


class VSSD(Pyramid):
    """VSSD.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage; the last stage has attention.
        dims: Channels per stage.
        num_heads: Heads per stage.
        d_state: Rows N of a head's state.
        expand: Inner channels of the mixers over their width.
        mlp_ratio: Hidden / width of the MLPs.
        scan: Refused: tokens have no order here.
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
        num_heads: Sequence[int] = (2, 4, 8, 16),
        d_state: int = 64,
        expand: int = 2,
        mlp_ratio: float = 4.0,
        scan: ScanSpec | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        if scan is not None:
            raise ValueError(_NO_SCAN.format(scan))
        if not len(depths) == len(dims) == len(num_heads):
            lengths = f'{len(depths)}, {len(dims)} and {len(num_heads)}'
            raise ValueError(f'depths, dims and num_heads have {lengths} stages: they must be equal')
        for dim, heads in zip(dims, num_heads, strict=True):
            if heads < 1 or dim % heads:
                raise ValueError(f'num_heads has {heads!r} for {dim} channels; allowed are their divisors')
        dd = {'device': device, 'dtype': dtype}
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def mixer(i: int) -> nn.Module:
            if i == len(dims) - 1:
                return MapAttention(dims[i], num_heads[i], **dd)
            return NonCausalSSD(dims[i], num_heads[i], d_state, expand, **dd)

        stages = [
            Stage(
                BottleneckDownsample(dims[i - 1], dim, **dd) if i else nn.Identity(),
                [PositionedBlock(dim, mixer(i), mlp_ratio, rate, **dd) for rate in rates[i]],
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
        self.apply(init_linear)

    @torch.jit.ignore
    def set_scan(self, scan: ScanSpec) -> None:
        """There is no order to change.

        Raises:
            ValueError: Always.
        """
        raise ValueError(_NO_SCAN.format(scan))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beyond timm's own rule (1-D parameters, biases), as upstream."""
        return set()

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'VSSD') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes the classification code's names, and those of detection or segmentation backbones (`backbone.`).
        """
        if 'stages.0.blocks.0.cpe1.weight' in state_dict:
            return state_dict
        return fit_shapes(rename(state_dict, _RENAMES), model)


_NO_SCAN = 'VSSD has no scan order to choose, as it sums over all tokens; leave scan={!r} out'
_RENAMES = [
    *MLLA_RENAMES,
    (r'\.attn\.conv2d\.', '.mixer.conv.'),
    (r'\.attn\.to_qkv\.', '.mixer.attn.qkv.'),
    (r'\.attn\.to_out\.(?:0\.)?', '.mixer.attn.proj.'),
    (r'(?<!\.mixer)\.attn\.', '.mixer.'),
]


checkpoint_filter_fn = VSSD.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'vssd',
    {'test_vssd': {'input_size': (3, 96, 96), 'pool_size': (3, 3)}},
    pool_size=(7, 7),
    first_conv='stem.conv1.conv',
    classifier='head.fc',
)


def _create_vssd(variant: str, pretrained: bool, args: dict, kwargs: dict) -> VSSD:
    return build(VSSD, variant, pretrained, **{**args, **kwargs})


@register_model
def vssd_micro(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-M: 14 M parameters."""
    args = {'depths': (2, 2, 8, 4), 'dims': (48, 96, 192, 384), 'd_state': 48}
    return _create_vssd('vssd_micro', pretrained, args, kwargs)


@register_model
def vssd_tiny(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-T: 24 M parameters."""
    return _create_vssd('vssd_tiny', pretrained, {'depths': (2, 4, 8, 4)}, kwargs)


@register_model
def vssd_small(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-S: 40 M parameters."""
    return _create_vssd('vssd_small', pretrained, {'depths': (3, 4, 21, 5)}, kwargs)


@register_model
def vssd_base(pretrained: bool = False, **kwargs) -> VSSD:
    """VSSD-B: 89 M parameters."""
    args = {'depths': (3, 4, 21, 5), 'dims': (96, 192, 384, 768), 'num_heads': (3, 6, 12, 24)}
    return _create_vssd('vssd_base', pretrained, args, kwargs)


@register_model
def test_vssd(pretrained: bool = False, **kwargs) -> VSSD:
    """For tests: under 1 M parameters."""
    args = {'depths': (1, 1, 2, 1), 'dims': (16, 32, 64, 128), 'num_heads': (1, 2, 4, 8), 'd_state': 16}
    return _create_vssd('test_vssd', pretrained, {**args, 'mlp_ratio': 2.0}, kwargs)
