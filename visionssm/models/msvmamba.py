"""MSVMamba: Multi-Scale VMamba, https://arxiv.org/abs/2405.14174 (NeurIPS 2024).

Official: https://github.com/YuHengsss/MSVMamba at c39401918e94f11eb29e4932b901b3fd139f1377 (master: `msvmamba_*`) and
fca4a391bff29d0e25fe8e6e54496389bb575935 (branch v2: `msvmambav3_*`). There is no licence file; VMamba, which both are
derived from, is MIT.

Every mixer walks two maps: the full-resolution one along one direction, and one of half the resolution along three,
which follow each other in one sequence: the state carries over from one to the next, by design.

The published weights depend on where the two generations differ, so all of it is reproduced: `msvmamba_*` norms what
every step of a branch puts out, upsamples bilinearly, keeps the parameter set of the half-resolution branch first, and
norms before its MLPs; `msvmambav3_*` norms once the sum of both branches, upsamples by nearest neighbour, keeps the
full-resolution set first, and norms behind its MLPs. `msvmambav3_base` has a gate, though the paper says that it is
removed: the weights have it.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import ChannelGate, DepthwiseMlp, FastLinears, Linear, ScanSpec, SelectiveSSM, add_tokens
from visionssm.scans import ScanOrder, get_scan, scan_order
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs, record_args
from .pyramid import Pyramid
from .renames import VSSM_RENAMES, place_renames, rename
from .vssm import make_stages, make_stem

__all__ = ['MSVMamba']

torch.fx.wrap('scan_order')


class MultiScaleMixer(FastLinears):
    """Projection, then a selective scan of the map and one of the map at half its resolution, summed; projection back.

    Each branch has a depthwise convolution, a scan order and one parameter set, and walks one sequence of tokens: an
    order of several directions is walked direction after direction, the state carried over.

    Args:
        dim: Channels in and out.
        d_state: States N per channel.
        expand: d_inner / dim.
        gate: Multiply the output by SiLU of a second half of the first projection.
        norm_steps: Norm the output of each step, before it is added to its token; else the sum of both branches.
        upsample: How the half-resolution output grows, a mode of `torch.nn.functional.interpolate`.
        full_set: Which of the two parameter sets, 0 or 1, is that of the full-resolution branch.
        scan: Order of the full-resolution branch.
        half_scan: Order of the half-resolution branch.
        local_window: Steps per window of LBMamba's local backward scan of either branch; 0: none.

    Source: arXiv:2405.14174, section 3.3; YuHengsss/MSVMamba@c394019 (multiscale_4scan_12) and @fca4a39 (vms).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        expand: float = 1.0,
        gate: bool = False,
        norm_steps: bool = False,
        upsample: str = 'nearest',
        full_set: int = 0,
        scan: ScanSpec = 'raster',
        half_scan: ScanSpec = 'multiscale',
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        d_inner = int(expand * dim)
        self.gate = gate
        self.norm_steps = norm_steps
        self.upsample = upsample
        self.full_set, self.half_set = full_set, 1 - full_set
        self.in_proj = Linear(dim, 2 * d_inner if gate else d_inner, bias=False, **dd)
        self.conv = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner, **dd)
        self.half_conv = nn.Conv2d(d_inner, d_inner, 7, stride=2, padding=3, groups=d_inner, **dd)
        self.ssm = SelectiveSSM(d_inner, d_state, math.ceil(dim / 16), 2, local_window=local_window, **dd)
        self.norm = nn.LayerNorm(d_inner, **dd)
        self.channel_gate = ChannelGate(d_inner, d_inner // 8, bias=False, **dd)
        self.out_proj = Linear(d_inner, dim, bias=False, **dd)
        self.set_scan(get_scan(scan, 1), get_scan(half_scan, 1))

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder, half_order: ScanOrder) -> None:
        """Take other orders."""
        self.scan, self.half_scan = order.to_json(), half_order.to_json()
        self.zeros, self.half_zeros = order.zeros, half_order.zeros
        self.once, self.half_once = (o.directions == 1 and o.permutation for o in (order, half_order))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, H, W, C)."""
        _, height, width, _ = x.shape
        x = self.in_proj(x)
        z = x
        if self.gate:
            x, z = x.chunk(2, -1)
        x = x.permute(0, 3, 1, 2)
        half = self._walk(self.half_conv(x), self.half_scan, self.half_zeros, self.half_once, self.half_set)
        half = F.interpolate(half.permute(0, 3, 1, 2), [height, width], mode=self.upsample)
        y = self._walk(self.conv(x), self.scan, self.zeros, self.once, self.full_set) + half.permute(0, 2, 3, 1)
        if not self.norm_steps:
            y = self.norm(y)
        y = y.to(x.dtype)
        y = y * self.channel_gate(y)
        if self.gate:
            y = y * F.silu(z)
        return self.out_proj(y)

    def _walk(self, x: Tensor, scan: str, zeros: bool, once: bool, parameter_set: int) -> Tensor:
        _, _, height, width = x.shape
        x = F.silu(x.permute(0, 2, 3, 1).flatten(1, 2))
        order = scan_order(scan, height, width, x).flatten().unsqueeze(0)  # [1, T], direction after direction
        if zeros:
            x = F.pad(x, [0, 0, 0, 1])
        if self.norm_steps and not once:
            y = add_tokens(x, order, self.norm(self.ssm(x, order, parameter_set, True)))
        else:
            y = self.ssm(x, order, parameter_set)
            if self.norm_steps:  # each token has had one step: the same
                y = self.norm(y)
        if zeros:
            y = y[:, : height * width]
        return y.unflatten(1, (height, width))


class MSVMambaBlock(nn.Module):
    """Residual block: multi-scale scan mixer, then an MLP with a depthwise convolution.

    Args:
        dim: Channels.
        mlp_ratio: Hidden / dim of the MLP.
        post_norm: Norm the MLP's output instead of its input.
        drop_path: Rate of dropping either branch, per sample.
        mixer_args: Arguments of `MultiScaleMixer`.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        post_norm: bool,
        drop_path: float,
        mixer_args: dict,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = MultiScaleMixer(dim, **mixer_args, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = DepthwiseMlp(dim, int(dim * mlp_ratio), residual=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        y = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        return x + self.drop_path(y)


class MSVMamba(Pyramid):
    """MSVMamba, both generations.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        d_state: States N per channel.
        expand: Inner channels of the mixer over its width.
        mlp_ratio: Hidden / width of the MLPs.
        gate: Gate the mixer with SiLU of a second projection.
        norm_steps: Norm the output of each step of a branch, not the sum of both branches.
        upsample: 'bilinear' or 'nearest': how the half-resolution output grows.
        full_set: Which of a mixer's two parameter sets, 0 or 1, is that of the full-resolution branch.
        post_norm: Norm behind the MLPs instead of before them.
        stem: 'patch' (one convolution) or 'overlap' (two).
        patch_size: Stride of the stem: any for 'patch'; 1, 2 or 4 for 'overlap'.
        downsample: 'merge' (patch merging) or 'conv' (3x3, stride 2).
        scan: Scan order of the full-resolution branches: name, dict, JSON string or `ScanOrder`. Every order fits: it
            is walked as one direction if it offers that, else its directions follow each other in one sequence.
        half_scan: The same for the half-resolution branches.
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
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        d_state: int = 1,
        expand: float = 1.0,
        mlp_ratio: float = 4.0,
        gate: bool = False,
        norm_steps: bool = False,
        upsample: str = 'nearest',
        full_set: int = 0,
        post_norm: bool = True,
        stem: str = 'overlap',
        patch_size: int = 4,
        downsample: str = 'conv',
        scan: ScanSpec = 'raster',
        half_scan: ScanSpec = 'multiscale',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        for name, value, allowed in (('upsample', upsample, ('bilinear', 'nearest')), ('full_set', full_set, (0, 1))):
            if value not in allowed:
                raise ValueError(f'{name} is {value!r}; allowed are {", ".join(map(str, allowed))}')
        dd = {'device': device, 'dtype': dtype}
        order, half_order = get_scan(scan, 1), get_scan(half_scan, 1)
        mixer_args = {
            'd_state': d_state,
            'expand': expand,
            'gate': gate,
            'norm_steps': norm_steps,
            'upsample': upsample,
            'full_set': full_set,
            'scan': order,
            'half_scan': half_order,
            'local_window': local_window,
        }

        def block(dim: int, rate: float) -> nn.Module:
            return MSVMambaBlock(dim, mlp_ratio, post_norm, rate, mixer_args, **dd)

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
        self.scan_directions = 1
        self.scan, self.half_scan = order.to_json(), half_order.to_json()
        self._init_weights()

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            # upstream's MLPs are 1x1 convolutions and keep PyTorch's initialisation, which linear layers share
            if isinstance(module, nn.Linear) and '.mlp.' not in name and not module.weight.is_meta:
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def set_scan(self, scan: ScanSpec, half_scan: ScanSpec | None = None) -> None:
        """Walk along other orders; the weights stay as they are.

        Args:
            scan: Order of the full-resolution branches: name, dict, JSON string or `ScanOrder`. Every order fits: the
                directions of one that does not offer a single direction follow each other in one sequence.
            half_scan: The same for the half-resolution branches; None: the order that they have.

        Raises:
            ValueError: If an order is unknown.
        """
        order = get_scan(scan, 1)
        half_order = get_scan(self.half_scan if half_scan is None else half_scan, 1)
        for module in self.modules():
            if isinstance(module, MultiScaleMixer):
                module.set_scan(order, half_order)
        self.scan, self.half_scan = order.to_json(), half_order.to_json()
        record_args(self, scan=self.scan, half_scan=self.half_scan)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The skips `D`: flat and so exempt upstream, (2, D) here. Upstream decays `A_log` and `dt_proj_bias`."""
        return self.scan_parameters('D')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'MSVMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes the classification code's names, and those of detection or segmentation backbones (`backbone.`).
        """
        if 'stages.0.blocks.0.mixer.in_proj.weight' in state_dict:
            return state_dict
        return fit_shapes(rename(state_dict, [*_RENAMES, *place_renames(model)]), model)


_RENAMES = [
    (r'\.op\.conv2d_b1\.', '.mixer.half_conv.'),
    (r'\.op\.se\.fc\.0\.', '.mixer.channel_gate.fc1.'),
    (r'\.op\.se\.fc\.2\.', '.mixer.channel_gate.fc2.'),
    (r'\.convFFN\.linear(\d)\.', r'.mlp.fc\1.'),
    (r'\.convFFN\.dwc\.', '.mlp.conv.'),
    *VSSM_RENAMES,
]


checkpoint_filter_fn = MSVMamba.checkpoint_filter_fn  # where timm keeps it


_TEST = {'input_size': (3, 96, 96), 'pool_size': (3, 3)}
default_cfgs = family_cfgs(
    'msvmamba',
    {
        **{f'msvmamba_{size}': {'first_conv': 'stem.conv'} for size in ('nano', 'micro', 'tiny')},
        'test_msvmamba': {'first_conv': 'stem.conv', **_TEST},
        'test_msvmambav3': _TEST,
    },
    pool_size=(7, 7),
    first_conv='stem.conv1',
    classifier='head.fc',
)

_V1 = {
    'expand': 2.0,
    'mlp_ratio': 2.0,
    'gate': True,
    'norm_steps': True,
    'upsample': 'bilinear',
    'full_set': 1,
    'post_norm': False,
    'stem': 'patch',
    'downsample': 'merge',
}


def _create_msvmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> MSVMamba:
    return build(MSVMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def msvmamba_nano(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-N: 7 M parameters."""
    args = {'depths': (1, 2, 5, 2), 'dims': (48, 96, 192, 384), **_V1}
    return _create_msvmamba('msvmamba_nano', pretrained, args, kwargs)


@register_model
def msvmamba_micro(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-M: 12 M parameters."""
    args = {'depths': (1, 2, 5, 2), 'dims': (64, 128, 256, 512), **_V1}
    return _create_msvmamba('msvmamba_micro', pretrained, args, kwargs)


@register_model
def msvmamba_tiny(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-T: 33 M parameters."""
    args = {'depths': (1, 2, 9, 2), 'dims': (96, 192, 384, 768), **_V1}
    return _create_msvmamba('msvmamba_tiny', pretrained, args, kwargs)


@register_model
def msvmambav3_tiny(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-T of the paper's final version: 32 M parameters."""
    args = {'depths': (2, 2, 9, 2), 'dims': (96, 192, 384, 768)}
    return _create_msvmamba('msvmambav3_tiny', pretrained, args, kwargs)


@register_model
def msvmambav3_small(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-S: 50 M parameters."""
    args = {'depths': (2, 3, 20, 2), 'dims': (96, 192, 384, 768)}
    return _create_msvmamba('msvmambav3_small', pretrained, args, kwargs)


@register_model
def msvmambav3_base(pretrained: bool = False, **kwargs) -> MSVMamba:
    """MSVMamba-B, with a gate: 91 M parameters."""
    args = {'depths': (2, 4, 18, 2), 'dims': (128, 256, 512, 1024), 'gate': True}
    return _create_msvmamba('msvmambav3_base', pretrained, args, kwargs)


@register_model
def test_msvmamba(pretrained: bool = False, **kwargs) -> MSVMamba:
    """For tests: under 1 M parameters."""
    args = {'depths': (1, 1, 2, 1), 'dims': (16, 32, 64, 128), **_V1}
    return _create_msvmamba('test_msvmamba', pretrained, args, kwargs)


@register_model
def test_msvmambav3(pretrained: bool = False, **kwargs) -> MSVMamba:
    """For tests, as v3 with a gate: under 1 M parameters."""
    args = {'depths': (1, 1, 2, 1), 'dims': (16, 32, 64, 128), 'gate': True}
    return _create_msvmamba('test_msvmambav3', pretrained, args, kwargs)
