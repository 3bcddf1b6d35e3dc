"""MobileMamba: Lightweight Multi-Receptive Visual Mamba Network, https://arxiv.org/abs/2411.15941 (CVPR 2025).

Official: https://github.com/lewandofskee/MobileMamba at 0980f48a23d232e0f2e86e740eccab038c8fd760, MIT.

Kept, as the published weights depend on it: a block adds its input once more to a stream that contains it already.
Differs from upstream: the Haar filters are sums and differences here instead of weights, so that a checkpoint's are
checked and left out, and a model has that many parameters less (0.3 %); and where upstream's scan falls back on plain
torch, it mixes the images of a batch, as its CUDA code and this do not.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates, make_divisible, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    SS2D,
    ChannelGate,
    ConvNorm,
    FastLinears,
    ScanSpec,
    SelectiveSSM,
    Stem,
    channels_last,
    check_image_size,
    scale_and_shift,
    spread,
)
from visionssm.scans import get_scan
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .distilled import DistilledHead, DistilledPyramid
from .pyramid import Stage
from .renames import SCAN_RENAMES, rename

__all__ = ['MobileMamba']


class MobileStem(Stem):
    """Four 3x3 convolutions of stride 2 with batch norm, ReLU between them: tokens (B, H / 16, W / 16, D), rounded up.

    Args:
        in_chans: Image channels.
        dim: Token channels D, a multiple of 8.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        widths = [in_chans, dim // 8, dim // 4, dim // 2, dim]
        self.convs = nn.ModuleList(
            ConvNorm(widths[i], widths[i + 1], 3, stride=2, device=device, dtype=dtype) for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        check_image_size(x, self.least)
        x = channels_last(x).permute(0, 2, 3, 1)
        for i, conv in enumerate(self.convs):
            x = conv(x) if i == 0 else conv(F.relu(x))
        return x


class ConvMlp(nn.Module):
    """1x1 convolution, ReLU, 1x1 convolution, with batch norms, on (B, H, W, C).

    Args:
        dim: Channels in and out; twice as many between.
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.fc1 = ConvNorm(dim, 2 * dim, device=device, dtype=dtype)
        self.fc2 = ConvNorm(2 * dim, dim, norm_weight=0.0, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every token."""
        return self.fc2(F.relu(self.fc1(x)))


class Haar(nn.Module):
    """Depthwise convolution between a Haar transform of one level and its inverse, on (B, H, W, C).

    The four bands follow each other: low, high along the height, high along the width, high along both.

    Args:
        dim: Channels.
        kernel_size: Side of the kernel, odd.

    Source: arXiv:2411.15941, section 3.3; wavelets in convolutions arXiv:2407.05848.
    """

    def __init__(self, dim: int, kernel_size: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv = nn.Conv2d(4 * dim, 4 * dim, kernel_size, padding=kernel_size // 2, groups=4 * dim, bias=False, **dd)
        self.scale = nn.Parameter(torch.full((1, 1, 1, 4 * dim), 0.1, **dd))  # with axes upstream's has: it decays

    def forward(self, x: Tensor) -> Tensor:
        """Transform, convolve, transform back."""
        _, height, width, _ = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, [0, 0, 0, 2 * columns - width, 0, 2 * rows - height])
        first, second = x.unflatten(1, (rows, 2)).unbind(2)
        x = torch.cat([first + second, first - second], -1)
        first, second = x.unflatten(2, (columns, 2)).unbind(3)
        x = torch.cat([first + second, first - second], -1)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x * (self.scale / 4)  # each transform has two factors of 1 / sqrt(2)
        low, high = x.chunk(2, -1)
        x = torch.stack([low + high, low - high], 3).flatten(2, 3)
        low, high = x.chunk(2, -1)
        x = torch.stack([low + high, low - high], 2).flatten(1, 2)
        # cropped by padding, as a slice would be contiguous at even sizes only, and compiled code depend on it
        return F.pad(x, [0, 0, 0, width - 2 * columns, 0, height - 2 * rows])


class MobileMixer(nn.Module):
    """Some channels are scanned and convolved among wavelets, some convolved, the rest kept; then all are mixed.

    Args:
        dim: Channels.
        scanned: Channels of the first kind.
        convolved: Channels of the second kind.
        kernel_size: Side of the kernels, odd.
        scan_args: Arguments of `SS2D` about its scan.

    Source: arXiv:2411.15941, section 3.3 (MRFFI); lewandofskee/MobileMamba@0980f48.
    """

    def __init__(
        self, dim: int, scanned: int, convolved: int, kernel_size: int, scan_args: dict, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.parts = [scanned, convolved, dim - scanned - convolved]
        self.scan_scale = nn.Parameter(torch.ones(1, 1, 1, scanned, **dd))  # with axes as upstream's has: it decays
        self.ss2d = SS2D(scanned, expand=2.0, gate=True, conv_bias=True, projection=ConvNorm, **scan_args, **dd)
        self.haar = Haar(scanned, kernel_size, **dd)
        self.local = ConvNorm(convolved, convolved, kernel_size, groups=convolved, **dd)
        self.local_scale = ConvNorm(convolved, convolved, groups=convolved, **dd)
        self.proj = ConvNorm(dim, dim, norm_weight=0.0, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x, y, rest = x.split(self.parts, -1)
        x = x.contiguous()
        x = torch.addcmul(self.haar(x), self.scan_scale, self.ss2d(x))
        y = self.local_scale(F.relu(self.local(y)))
        return self.proj(F.relu(torch.cat([x, y, rest], -1)))


class MobileMambaBlock(FastLinears):
    """Depthwise convolution, MLP, mixer, depthwise convolution, MLP, each added to its input; and the input once more.

    Args:
        dim: Channels.
        drop_path: Rate of dropping all of them, per sample.
        mixer_args: Arguments of `MobileMixer` besides `dim`.
    """

    def __init__(self, dim: int, drop_path: float, mixer_args: dict, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv1 = ConvNorm(dim, dim, 3, groups=dim, norm_weight=0.0, **dd)
        self.mlp1 = ConvMlp(dim, **dd)
        self.mixer = MobileMixer(dim, **mixer_args, **dd)
        self.conv2 = ConvNorm(dim, dim, 3, groups=dim, norm_weight=0.0, **dd)
        self.mlp2 = ConvMlp(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        y = x + self.conv1(x)
        y = y + self.mlp1(y)
        y = y + self.mixer(y)
        y = y + self.conv2(y)
        y = y + self.mlp2(y)
        return x + self.drop_path(y)


class MobileDownsample(FastLinears):
    """Inverted bottleneck of stride 2 with squeeze-and-excitation, a depthwise convolution and an MLP on either side.

    Args:
        dim: Channels in.
        out_dim: Channels out.
    """

    def __init__(self, dim: int, out_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        hidden = 4 * dim
        self.conv1 = ConvNorm(dim, dim, 3, groups=dim, **dd)
        self.mlp1 = ConvMlp(dim, **dd)
        self.expand = ConvNorm(dim, hidden, **dd)
        self.halve = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, **dd)
        self.gate = ChannelGate(hidden, make_divisible(hidden / 4, 8), **dd)
        self.reduce = ConvNorm(hidden, out_dim, **dd)
        self.conv2 = ConvNorm(out_dim, out_dim, 3, groups=out_dim, **dd)
        self.mlp2 = ConvMlp(out_dim, **dd)

    @torch.jit.ignore
    def keep_size(self, dilation: int) -> None:
        """Do not halve the map; read pixels that are `dilation` apart."""
        self.halve.keep_size(dilation)
        spread(self.conv1.conv, dilation)
        spread(self.conv2.conv, 2 * dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Halve (B, H, W, C)."""
        x = x + self.conv1(x)
        x = x + self.mlp1(x)
        x = F.relu(self.halve(F.relu(self.expand(x))))
        x = self.reduce(x * self.gate(x))
        x = x + self.conv2(x)
        return x + self.mlp2(x)


class NormLinear(nn.Module):
    """Batch norm and linear layer, on (B, C); one layer after `reparameterize`.

    Args:
        in_features: Channels in.
        out_features: Channels out.
    """

    def __init__(self, in_features: int, out_features: int, device=None, dtype=None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features, device=device, dtype=dtype)
        self.linear = nn.Linear(in_features, out_features, device=device, dtype=dtype)
        if not self.linear.weight.is_meta:  # slow there, and nothing to fill
            trunc_normal_(self.linear.weight, std=0.02)
            nn.init.zeros_(self.linear.bias)

    @torch.jit.ignore
    @torch.no_grad()
    def reparameterize(self) -> None:
        """Put the norm, as it is in evaluation, into weight and bias of the linear layer."""
        if not isinstance(self.bn, nn.Identity):
            scale, shift = scale_and_shift(self.bn)
            self.linear.bias.add_(self.linear.weight @ shift)
            self.linear.weight.mul_(scale)
            self.bn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Norm and project."""
        return self.linear(self.bn(x))


class MobileMamba(DistilledPyramid):
    """MobileMamba: three stages at strides 16, 32 and 64.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage; the first a multiple of 8.
        kernel_sizes: Sides of the mixers' kernels, per stage, odd.
        global_ratios: Channels that are scanned over all, per stage; rounded to a multiple of 16.
        local_ratios: Channels that are convolved over all, per stage; at most what is left.
        scan: Scan order of all mixers: name, dict, JSON string or `ScanOrder`. If it does not offer two directions,
            the model has as many sets of scan parameters as it has directions.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        distillation: Have a second classifier for a teacher's labels; no published weights have one.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        output_stride: Pixels per token of the last map, 16, 32 or 64: later stages are dilated instead of halved.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    output_strides = (16, 32, 64)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        depths: Sequence[int] = (1, 2, 2),
        dims: Sequence[int] = (176, 368, 448),
        kernel_sizes: Sequence[int] = (7, 5, 3),
        global_ratios: Sequence[float] = (0.8, 0.7, 0.6),
        local_ratios: Sequence[float] = (0.2, 0.2, 0.3),
        scan: ScanSpec = 'bidirectional',
        local_window: int = 0,
        distillation: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 64,
        device=None,
        dtype=None,
    ) -> None:
        per_stage = {'depths': depths, 'dims': dims, 'kernel_sizes': kernel_sizes}
        per_stage |= {'global_ratios': global_ratios, 'local_ratios': local_ratios}
        if len({len(values) for values in per_stage.values()}) > 1:
            said = ', '.join(f'{name} {len(values)}' for name, values in per_stage.items())
            raise ValueError(f'numbers of stages differ: {said}')
        if dims[0] % 8:
            raise ValueError(f'dims starts with {dims[0]}; allowed are multiples of 8')
        if even := [side for side in kernel_sizes if side % 2 == 0]:
            raise ValueError(f'kernel_sizes has {even[0]}; allowed are odd numbers')
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 2)
        self.distilled = distillation  # the head is built from it
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, dim in enumerate(dims):
            scanned = min(make_divisible(int(global_ratios[i] * dim), 16, round_limit=0.0), dim)
            convolved = min(int(local_ratios[i] * dim), dim - scanned)
            if min(scanned, convolved) < 1:
                raise ValueError(
                    f'stage {i} of {dim} channels would scan {scanned} and convolve {convolved}; allowed is no 0'
                )
            mixer_args = {
                'scanned': scanned,
                'convolved': convolved,
                'kernel_size': kernel_sizes[i],
                'scan_args': {'scan': order, 'local_window': local_window},
            }
            stages.append(
                Stage(
                    MobileDownsample(dims[i - 1], dim, **dd) if i else nn.Identity(),
                    [MobileMambaBlock(dim, rate, mixer_args, **dd) for rate in rates[i]],
                )
            )
        super().__init__(
            MobileStem(in_chans, dims[0], **dd),
            stages,
            nn.Identity(),  # the norm follows the pooling
            list(dims),
            16,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            output_stride,
            **dd,
        )
        self.scan_directions = order.directions
        self.scan = order.to_json()
        self.apply(_init_weights)

    def _make_head(self, num_classes: int, global_pool: str, device, dtype) -> nn.Module:
        return DistilledHead(
            self.num_features, num_classes, global_pool, self.drop_rate, self.distilled, NormLinear, device, dtype
        )

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The linear layer of the classifier, or those of both."""
        heads = [getattr(head, 'linear', head) for head in (self.head.fc, self.head.fc_dist)]
        return tuple(heads) if self.distilled else heads[0]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The skips `D`: flat and so exempt upstream, (K, D) here. Upstream decays all else that is not 1-D."""
        return self.scan_parameters('D')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'MobileMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Its Haar filters are left out if that is what they are. So is the norm of the classifier for a model without.
        """
        if 'stem.convs.0.conv.weight' not in state_dict:
            own = {name: x for name, x in state_dict.items() if not (_FILTER.search(name) and _is_haar(x))}
            own = {name: _by_band(x) if _WAVELET.search(name) else x for name, x in own.items()}
            state_dict = fit_shapes(rename(own, _RENAMES), model)
        if isinstance(model.head.fc, nn.Identity):
            state_dict = {name: x for name, x in state_dict.items() if not name.startswith('head.')}
        return state_dict


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, SelectiveSSM) and not module.D.is_meta:  # slow there, and nothing to fill
        nn.init.zeros_(module.A_log)
        nn.init.uniform_(module.dt_proj_weight, 0.0, 0.1)
        nn.init.uniform_(module.dt_proj_bias, 0.0, 0.1)


_FILTER, _WAVELET = re.compile(r'\.i?wt_filter$'), re.compile(r'\.wavelet_(?:convs|scale)\.')
_HAAR = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2


def _is_haar(x: Tensor) -> bool:
    """Whether filters (4 C, 1, 2, 2) are those of the Haar transform for every channel."""
    return x.shape[1:] == (1, 2, 2) and torch.allclose(x.float().cpu(), _HAAR.repeat(len(x) // 4, 1, 1)[:, None])


def _by_band(x: Tensor) -> Tensor:
    """What upstream has channel by channel, four bands each, band by band; along the only axis that is not 1, or 0."""
    axis = 1 if len(x) == 1 else 0
    return x.unflatten(axis, (-1, 4)).transpose(axis, axis + 1).flatten(axis, axis + 1)


_BOTTLENECK = {'conv1': 'expand', 'conv2': 'halve', 'se': 'gate', 'conv3': 'reduce'}


def _place(match: re.Match) -> str:
    """Our place of `blocksI.J`; from the second stage on, J is 0 to 2 before, in and behind the bottleneck."""
    stage, index, rest = int(match[1]) - 1, int(match[2]), match[3]
    if stage and index == 1:
        layer, _, name = rest.partition('.')
        return f'stages.{stage}.downsample.{_BOTTLENECK.get(layer, layer)}.{name}'
    if stage and index < 3:
        layer = 'conv' if rest.startswith('0') else 'mlp'
        return f'stages.{stage}.downsample.{layer}{index // 2 + 1}.{rest[4:]}'
    return f'stages.{stage}.blocks.{index - 3 if stage else index}.{rest}'


_RENAMES = [
    (r'^patch_embed\.(\d)\.', lambda match: f'stem.convs.{int(match[1]) // 2}.'),
    (r'^blocks(\d)\.(\d+)\.(.+)$', _place),
    (r'^head(_dist)?\.bn\.', r'head.fc\1.bn.'),
    (r'^head(_dist)?\.l\.', r'head.fc\1.linear.'),
    (r'\.dw(\d)\.m\.', lambda match: f'.conv{int(match[1]) + 1}.'),
    (r'\.ffn(\d)\.m\.', lambda match: f'.mlp{int(match[1]) + 1}.'),
    (r'\.pw(\d)\.', r'.fc\1.'),
    (r'\.mixer\.m\.attn\.', '.mixer.'),
    (r'\.mixer\.proj\.1\.', '.mixer.proj.'),
    (r'\.local_op\.dwconv3x3\.', '.local.conv.'),
    (r'\.local_op\.bn1\.', '.local.bn.'),
    (r'\.local_op\.dwconv1x1\.', '.local_scale.conv.'),
    (r'\.local_op\.bn2\.', '.local_scale.bn.'),
    (r'\.global_op\.base_scale\.weight$', '.scan_scale'),
    (r'\.global_op\.wavelet_convs\.0\.', '.haar.conv.'),
    (r'\.global_op\.wavelet_scale\.0\.weight$', '.haar.scale'),
    (r'\.global_op\.global_atten\.', '.ss2d.'),
    (r'\.c\.weight$', '.conv.weight'),
    *SCAN_RENAMES,
]


checkpoint_filter_fn = MobileMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'mobilemamba',
    {
        **{f'mobilemamba_{size}': {'input_size': (3, 192, 192), 'pool_size': (3, 3)} for size in ('t2', 't4')},
        'mobilemamba_b1': {'input_size': (3, 256, 256)},
        'mobilemamba_b2': {'input_size': (3, 384, 384), 'pool_size': (6, 6)},
        'mobilemamba_b4': {'input_size': (3, 512, 512), 'pool_size': (8, 8)},
        'test_mobilemamba': {'input_size': (3, 128, 128), 'pool_size': (2, 2)},
    },
    pool_size=(4, 4),
    first_conv='stem.convs.0.conv',
    classifier='head.fc.linear',
)


def _create_mobilemamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> MobileMamba:
    return build(MobileMamba, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def mobilemamba_t2(pretrained: bool = False, **kwargs) -> MobileMamba:
    """MobileMamba-T2, at 192: 8.8 M parameters."""
    return _create_mobilemamba('mobilemamba_t2', pretrained, {'dims': (144, 272, 368)}, kwargs)


@register_model
def mobilemamba_t4(pretrained: bool = False, **kwargs) -> MobileMamba:
    """MobileMamba-T4, at 192: 14 M parameters."""
    return _create_mobilemamba('mobilemamba_t4', pretrained, {'dims': (176, 368, 448)}, kwargs)


@register_model
def mobilemamba_s6(pretrained: bool = False, **kwargs) -> MobileMamba:
    """MobileMamba-S6, at 224: 15 M parameters."""
    return _create_mobilemamba('mobilemamba_s6', pretrained, {'dims': (192, 384, 448)}, kwargs)


_B = {'depths': (2, 3, 2), 'dims': (200, 376, 448)}


@register_model
def mobilemamba_b1(pretrained: bool = False, **kwargs) -> MobileMamba:
    """MobileMamba-B1, at 256: 17 M parameters."""
    return _create_mobilemamba('mobilemamba_b1', pretrained, _B, kwargs)


@register_model
def mobilemamba_b2(pretrained: bool = False, **kwargs) -> MobileMamba:
    """MobileMamba-B2, B1 at 384."""
    return _create_mobilemamba('mobilemamba_b2', pretrained, _B, kwargs)


@register_model
def mobilemamba_b4(pretrained: bool = False, **kwargs) -> MobileMamba:
    """MobileMamba-B4, B1 at 512."""
    return _create_mobilemamba('mobilemamba_b4', pretrained, _B, kwargs)


@register_model
def test_mobilemamba(pretrained: bool = False, **kwargs) -> MobileMamba:
    """For tests: under 1 M parameters."""
    return _create_mobilemamba('test_mobilemamba', pretrained, {'depths': (1, 1, 1), 'dims': (40, 64, 80)}, kwargs)
