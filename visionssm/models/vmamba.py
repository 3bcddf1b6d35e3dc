"""VMamba: Visual State Space Model, https://arxiv.org/abs/2401.10166 (NeurIPS 2024).

Official: https://github.com/MzeroMiko/VMamba at 2ed52ead062a51a64521ed3871d52914bf532876, MIT.

One class holds all generations: `vmamba_vanilla_*` (gated, 16 states, no MLP), the current `_s1l*` and `_s2l*` (no
gate, one state) and `_m2` (Mamba-2 form; upstream has code for it, no weights). Maps are channels-last throughout;
upstream's 1x1 convolutions are linear layers here.

Differs from upstream: odd maps are padded right before patch merging in every path (upstream's channels-first one pads
the wrong axes; no published model uses it), and the step initialisation that its single-file `vmamba.py` loses is kept.
"""

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import SS2D, Mlp, ScanSpec, SelectiveSSM
from visionssm.scans import get_scan
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .pyramid import Pyramid, init_linear
from .renames import VSSM_RENAMES, place_renames, rename
from .vssm import make_stages, make_stem

__all__ = ['VMamba']


class VMambaBlock(nn.Module):
    """Pre-norm residual block: scan mixer, then an MLP unless `mlp_ratio` is 0.

    Args:
        dim: Channels.
        mlp_ratio: Hidden / dim of the MLP; 0: none.
        drop_path: Rate of dropping either branch, per sample.
        mixer_args: Arguments of `SS2D`.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float, mixer_args: dict, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = SS2D(dim, **mixer_args, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.has_mlp = mlp_ratio > 0
        self.norm2 = nn.LayerNorm(dim, **dd) if self.has_mlp else nn.Identity()
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if self.has_mlp else nn.Identity()

    @torch.jit.ignore
    def projected_norms(self) -> list[tuple[nn.Module, nn.Linear]]:
        """Norms, each with the one linear layer that reads it."""
        return [(self.norm1, self.mixer.in_proj), *([(self.norm2, self.mlp.fc1)] if self.has_mlp else [])]

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.has_mlp:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class VMamba(Pyramid):
    """VMamba, every generation.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        d_state: States N per channel.
        expand: Inner channels of the mixer over its width.
        mlp_ratio: Hidden / width of the MLPs; 0: blocks have none.
        gate: Gate the mixer with SiLU of a second projection.
        conv_bias: Bias of the mixer's depthwise convolution.
        act_layer: Activation after that convolution.
        mixer: 'mamba1' or 'mamba2'.
        stem: 'patch' (one convolution) or 'overlap' (two).
        patch_size: Stride of the stem: any for 'patch'; 1, 2 or 4 for 'overlap'.
        downsample: 'merge' (patch merging) or 'conv' (3x3, stride 2).
        scan: Scan order of all mixers: name, dict, JSON string or `ScanOrder`. If it does not offer four directions,
            the model has as many sets of scan parameters as it has directions.
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
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        d_state: int = 1,
        expand: float = 1.0,
        mlp_ratio: float = 4.0,
        gate: bool = False,
        conv_bias: bool = False,
        act_layer: str = 'silu',
        mixer: str = 'mamba1',
        stem: str = 'overlap',
        patch_size: int = 4,
        downsample: str = 'conv',
        scan: ScanSpec = 'cross',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 4)
        mixer_args = {
            'd_state': d_state,
            'expand': expand,
            'gate': gate,
            'conv_bias': conv_bias,
            'act_layer': act_layer,
            'mixer': mixer,
            'scan': order,
            'local_window': local_window,
        }

        def block(dim: int, rate: float) -> nn.Module:
            return VMambaBlock(dim, mlp_ratio, rate, mixer_args, **dd)

        super().__init__(
            make_stem(stem, in_chans, dims[0], patch_size, **dd),
            make_stages(downsample, depths, dims, drop_path_rate, block, **dd),
            nn.LayerNorm(dims[-1], **dd),
            list(dims),
            patch_size,
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
        """What upstream exempts from weight decay beyond timm's own rule (1-D parameters, biases).

        Upstream decays everything but those, `A_log`, `dt_proj_bias` and the projections included. The skip `D` is flat
        there and (K, D) here, so it is named; in the Mamba-2 form it is 3-D there, and decayed.
        """
        scans = ((name, m) for name, m in self.named_modules() if isinstance(m, SelectiveSSM))
        return {f'{name}.D' for name, m in scans if m.mixer == 'mamba1'}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'VMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes the classification code's names, the older ones of its first release, those of the single-file
        `vmamba.py`, and detection or segmentation backbones (`backbone.`).
        """
        if 'stages.0.blocks.0.mixer.in_proj.weight' in state_dict:
            return state_dict
        return fit_shapes(rename(state_dict, [*VSSM_RENAMES, *place_renames(model)]), model)


checkpoint_filter_fn = VMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'vmamba',
    {
        **{f'vmamba_vanilla_{size}': {'first_conv': 'stem.conv'} for size in ('tiny', 'small', 'base')},
        'test_vmamba': {'input_size': (3, 96, 96), 'pool_size': (3, 3)},
    },
    pool_size=(7, 7),
    first_conv='stem.conv1',
    classifier='head.fc',
)

_TINY, _BASE = (96, 192, 384, 768), (128, 256, 512, 1024)
_VANILLA = {
    'd_state': 16,
    'expand': 2.0,
    'mlp_ratio': 0.0,
    'gate': True,
    'conv_bias': True,
    'stem': 'patch',
    'downsample': 'merge',
}
_M2 = {'d_state': 64, 'mixer': 'mamba2', 'act_layer': 'gelu'}


def _create_vmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> VMamba:
    return build(VMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T, inner width 1x: 30 M parameters."""
    return _create_vmamba('vmamba_tiny_s1l8', pretrained, {'depths': (2, 2, 8, 2), 'dims': _TINY}, kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """Small, inner width 1x: 49 M parameters."""
    return _create_vmamba('vmamba_small_s1l20', pretrained, {'depths': (2, 2, 20, 2), 'dims': _TINY}, kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """Base, inner width 1x: 87 M parameters."""
    return _create_vmamba('vmamba_base_s1l20', pretrained, {'depths': (2, 2, 20, 2), 'dims': _BASE}, kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs) -> VMamba:
    """Tiny, inner width 2x: 31 M parameters."""
    return _create_vmamba(
        'vmamba_tiny_s2l5', pretrained, {'depths': (2, 2, 5, 2), 'dims': _TINY, 'expand': 2.0}, kwargs
    )


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S, inner width 2x: 50 M parameters."""
    return _create_vmamba(
        'vmamba_small_s2l15', pretrained, {'depths': (2, 2, 15, 2), 'dims': _TINY, 'expand': 2.0}, kwargs
    )


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B, inner width 2x: 89 M parameters."""
    return _create_vmamba(
        'vmamba_base_s2l15', pretrained, {'depths': (2, 2, 15, 2), 'dims': _BASE, 'expand': 2.0}, kwargs
    )


@register_model
def vmamba_vanilla_tiny(pretrained: bool = False, **kwargs) -> VMamba:
    """First release, tiny: 23 M parameters."""
    return _create_vmamba(
        'vmamba_vanilla_tiny', pretrained, {'depths': (2, 2, 9, 2), 'dims': _TINY, **_VANILLA}, kwargs
    )


@register_model
def vmamba_vanilla_small(pretrained: bool = False, **kwargs) -> VMamba:
    """First release, small: 44 M parameters."""
    return _create_vmamba(
        'vmamba_vanilla_small', pretrained, {'depths': (2, 2, 27, 2), 'dims': _TINY, **_VANILLA}, kwargs
    )


@register_model
def vmamba_vanilla_base(pretrained: bool = False, **kwargs) -> VMamba:
    """First release, base: 76 M parameters."""
    return _create_vmamba(
        'vmamba_vanilla_base', pretrained, {'depths': (2, 2, 27, 2), 'dims': _BASE, **_VANILLA}, kwargs
    )


@register_model
def vmamba_tiny_m2(pretrained: bool = False, **kwargs) -> VMamba:
    """Mamba-2 form, tiny; no published weights."""
    return _create_vmamba('vmamba_tiny_m2', pretrained, {'depths': (2, 2, 4, 2), 'dims': _TINY, **_M2}, kwargs)


@register_model
def vmamba_small_m2(pretrained: bool = False, **kwargs) -> VMamba:
    """Mamba-2 form, small; no published weights."""
    return _create_vmamba('vmamba_small_m2', pretrained, {'depths': (2, 2, 12, 2), 'dims': _TINY, **_M2}, kwargs)


@register_model
def vmamba_base_m2(pretrained: bool = False, **kwargs) -> VMamba:
    """Mamba-2 form, base; no published weights."""
    return _create_vmamba('vmamba_base_m2', pretrained, {'depths': (2, 2, 12, 2), 'dims': _BASE, **_M2}, kwargs)


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs) -> VMamba:
    """Not of the paper: trains on a CPU in minutes (for small images give `patch_size=2` or 1)."""
    return _create_vmamba('vmamba_nano', pretrained, {'depths': (1, 1, 2, 1), 'dims': (32, 64, 128, 256)}, kwargs)


@register_model
def test_vmamba(pretrained: bool = False, **kwargs) -> VMamba:
    """For tests: under 1 M parameters."""
    return _create_vmamba('test_vmamba', pretrained, {'depths': (1, 1, 2, 1), 'dims': (16, 32, 64, 128)}, kwargs)
