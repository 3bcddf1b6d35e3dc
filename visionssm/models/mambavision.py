"""MambaVision: A Hybrid Mamba-Transformer Vision Backbone, https://arxiv.org/abs/2407.08083 (CVPR 2025).

Official: https://github.com/NVlabs/MambaVision at 7860a506b2eb844eaaae676f08461ce8c3c26f43, NVIDIA Source Code
License-NC; nothing here is from its code. The published weights are CC-BY-NC-SA-4.0: not for commercial use.

Two stages of residual convolutions, then two of windows, in which the first half of the blocks scans and the second
half attends.

Kept, as the published weights depend on it: the bias of the step projection counts twice; the convolutions along tokens
look both ways; the branch without a scan is concatenated, not multiplied; the zeros that fill up windows are scanned
and attended to.
Differs from upstream: maps are channels-last throughout; a downsampling belongs to the stage behind it; windows follow
`img_size` unless they are given (upstream writes them into each variant: the same numbers).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import (
    ConvNormAct,
    DropPath,
    LayerScale,
    calculate_drop_path_rates,
    register_notrace_function,
    to_2tuple,
    trunc_normal_,
)
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    ConvDownsample,
    FastLinears,
    Linear,
    Mlp,
    ScanningModule,
    ScanSpec,
    SelectiveSSM,
    SelfAttention,
    Stem,
    channels_last,
    check_image_size,
)
from visionssm.scans import ScanOrder, get_scan, scan_order
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs, record_args
from .pyramid import Pyramid, Stage, init_linear
from .renames import Renames, rename

__all__ = ['MambaVision']

torch.fx.wrap('check_image_size')
torch.fx.wrap('scan_order')


class ConvStem(Stem):
    """Two 3x3 convolutions of stride 2, each with BatchNorm and ReLU: images to (B, H / 4, W / 4, D), rounded up.

    Args:
        in_chans: Image channels.
        hidden: Channels between.
        dim: Token channels.
    """

    def __init__(self, in_chans: int, hidden: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        args = {'stride': 2, 'norm_kwargs': {'eps': 1e-4}, 'device': device, 'dtype': dtype}
        self.conv1 = ConvNormAct(in_chans, hidden, 3, **args)
        self.conv2 = ConvNormAct(hidden, dim, 3, **args)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W)."""
        check_image_size(x, self.least)
        return self.conv2(self.conv1(channels_last(x))).permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """Residual block of two 3x3 convolutions with BatchNorm on (B, H, W, C).

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
    """

    def __init__(self, dim: int, drop_path: float, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU(approximate='tanh')
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        y = self.act(self.norm1(self.conv1(x.permute(0, 3, 1, 2))))
        y = self.norm2(self.conv2(y)).permute(0, 2, 3, 1)
        return x + self.drop_path(y)


torch.fx.wrap('_along_tokens')


@register_notrace_function
def _along_tokens(x: torch.Tensor, weight: torch.Tensor, padding: list[int]) -> torch.Tensor:
    if not torch.jit.is_tracing() and x.shape[0] == 0:  # torch refuses an image without rows
        return x * weight.sum()
    # sequences as the rows of one image: no transposed copy, and no batch for compiled graphs to be tied to
    x = x.unsqueeze(0).permute(0, 3, 1, 2)
    x = F.conv2d(x, weight, None, padding=padding, groups=x.shape[1])
    return x.permute(0, 2, 3, 1).squeeze(0)


class TokenConv(nn.Conv1d):
    """Depthwise convolution along tokens (B, L, D) that looks both ways and keeps their number; no bias.

    Args:
        dim: Channels.
        width: Width of the kernel, odd.
    """

    def __init__(self, dim: int, width: int, device=None, dtype=None) -> None:
        super().__init__(dim, dim, width, padding=width // 2, groups=dim, bias=False, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        return _along_tokens(input, self.weight.unsqueeze(2), [0, self.padding[0]])


class MambaVisionMixer(ScanningModule):
    """Projection to two halves: one is convolved and scanned, one only convolved; both go through the projection back.

    Args:
        dim: Channels in and out, even.
        window: Side of the windows.
        d_state: States N per channel.
        d_conv: Width of the convolutions along tokens, odd.
        scan: Scan order of a window; it decides the number of parameter sets.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Raises:
        ValueError: If `dim` is odd or `d_conv` even.

    Source: arXiv:2407.08083, section 3.2; NVlabs/MambaVision@7860a50.
    """

    def __init__(
        self,
        dim: int,
        window: int,
        d_state: int = 8,
        d_conv: int = 3,
        scan: ScanSpec = 'raster',
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if dim % 2 or d_conv % 2 == 0:
            raise ValueError(f'dim is {dim} and d_conv {d_conv}: dim must be even and d_conv odd')
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 1)
        self.window = window
        self.in_proj = Linear(dim, dim, bias=False, **dd)
        self.conv_x = TokenConv(dim // 2, d_conv, **dd)
        self.conv_z = TokenConv(dim // 2, d_conv, **dd)
        self.ssm = SelectiveSSM(
            dim // 2,
            d_state,
            math.ceil(dim / 16),
            order.directions,
            bias_count=2,
            local_window=local_window,
            **dd,
        )
        self.out_proj = Linear(dim, dim, bias=False, **dd)
        self.set_scan(order)

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder) -> None:
        """Take another order with as many directions."""
        super().set_scan(order)
        self.zeros = order.zeros

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of windows, (B, L, C)."""
        x, z = self.in_proj(x).chunk(2, -1)
        x, z = F.silu(self.conv_x(x)), F.silu(self.conv_z(z))
        order = scan_order(self.scan, self.window, self.window, x)
        if self.zeros:
            y = self.ssm(F.pad(x, [0, 0, 0, 1]), order)[:, : x.shape[1]]
        else:
            y = self.ssm(x, order)
        return self.out_proj(torch.cat([y, z], -1))


class MambaVisionBlock(FastLinears):
    """Pre-norm residual block on windows, (B, L, C): a mixer, then an MLP.

    Args:
        dim: Channels.
        mixer: `MambaVisionMixer` or attention.
        mlp_ratio: Hidden / dim of the MLP.
        init_values: Start of the layer scales; None: none.
        drop_path: Rate of dropping either branch, per sample.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float,
        init_values: float | None,
        drop_path: float,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        scaled = init_values is not None
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.ls1 = LayerScale(dim, init_values, **dd) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.ls2 = LayerScale(dim, init_values, **dd) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


@torch.fx.wrap
@register_notrace_function
def window_places(batch: int, height: int, width: int, window: int, dilation: int, like: Tensor) -> Tensor:
    """Where the pixels of maps stand among the tokens of all their windows, (B H W,), on the device of `like`.

    Windows follow each other row by row, as do the pixels of each, which are `dilation` apart: dilation^2 windows share
    the stretch of the map that they span.
    """
    rows, columns = count_windows(height, window * dilation), count_windows(width, window * dilation)
    pixel = torch.arange(batch * height * width, device=like.device)
    x, y, image = pixel % width, pixel // width % height, pixel // (height * width)
    row, column = y // (window * dilation), x // (window * dilation)
    of_window = (((image * rows + row) * dilation + y % dilation) * columns + column) * dilation + x % dilation
    return (of_window * window + y // dilation % window) * window + x // dilation % window


def count_windows(side: int, span: int) -> int:
    """How many stretches of `span` cover a side."""
    return (side + span - 1) // span


class WindowStage(Stage):
    """A stage whose blocks see windows.

    Args:
        downsample: Module that halves the map.
        blocks: Blocks in order, on (B windows, L, C).
        window: Side of the windows.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], window: int) -> None:
        super().__init__(downsample, blocks)
        self.window, self.dilation = window, 1

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage on (B, H, W, C)."""
        x = self.downsample(x)
        batch, height, width, channels = x.shape
        side, span = self.window, self.window * self.dilation
        count = batch * count_windows(height, span) * count_windows(width, span) * self.dilation * self.dilation
        # an index, not padding and reshapes, which would tie compiled graphs to whether windows fit
        places = window_places(batch, height, width, side, self.dilation, x)
        tokens = x.new_zeros(count * side * side, channels).index_copy(0, places, x.flatten(0, 2))
        tokens = self.run_blocks(tokens.reshape(count, side * side, channels)).flatten(0, 1)
        return tokens.index_select(0, places).reshape(batch, height, width, channels)

    @torch.jit.ignore
    def dilate(self, dilation: int) -> None:
        """Keep the resolution; windows hold as many pixels, twice as far apart as those that the downsampling reads."""
        super().dilate(dilation)
        self.dilation = 2 * dilation


class MapBatchNorm(nn.Module):
    """BatchNorm of (B, H, W, C).

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(dim, device=device, dtype=dtype)  # a module of its own, so that SyncBatchNorm fits

    def forward(self, x: Tensor) -> Tensor:
        """Norm."""
        return self.bn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MambaVision(Pyramid):
    """MambaVision: the last two stages work on windows, all before them are convolutions.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        img_size: Image size (one side, or height and width) that the windows are chosen for. Images of every size are
            taken, and windows filled up with zeros.
        depths: Blocks per stage. Of the n blocks of a stage with windows, the last n // 2 attend, the others scan.
        dims: Channels per stage.
        stem_dim: Channels inside the stem.
        num_heads: Attention heads of the last two stages.
        windows: Sides of their windows, in tokens; None: those that cover a map of the longer side of `img_size`.
        mlp_ratio: Hidden / width of the MLPs.
        init_values: Start of the layer scales in stages with windows; None: none.
        d_state: States N per channel.
        d_conv: Width of the convolutions along tokens, odd.
        scan: Scan order of the windows: name, dict, JSON string or `ScanOrder`. If it does not offer one direction, the
            model has as many sets of scan parameters as it has directions. Convolutions go along rows all the same.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        output_stride: Pixels per token of the last map, 8, 16 or 32: later stages are dilated instead of halved.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    out_norm_eps = 1e-6

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        img_size: int | tuple[int, int] = 224,
        depths: Sequence[int] = (1, 3, 8, 4),
        dims: Sequence[int] = (80, 160, 320, 640),
        stem_dim: int = 32,
        num_heads: Sequence[int] = (8, 16),
        windows: Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        init_values: float | None = None,
        d_state: int = 8,
        d_conv: int = 3,
        scan: ScanSpec = 'raster',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        if len(depths) != len(dims) or len(dims) < 2:
            raise ValueError(f'depths has {len(depths)} stages and dims {len(dims)}: they must be equal, at least 2')
        first = len(dims) - 2  # with windows
        if windows is None:
            windows = [math.ceil(max(to_2tuple(img_size)) / 2 ** (i + 2)) for i in range(first, len(dims))]
        for name, values in (('windows', windows), ('num_heads', num_heads)):
            if len(values) != 2 or min(values) < 1:
                raise ValueError(f'{name} is {tuple(values)}; it must be two numbers from 1, for the last two stages')
        for dim, heads in zip(dims[first:], num_heads, strict=True):
            if dim % heads or dim % 2:
                raise ValueError(f'{heads} heads of {dim} channels: heads must divide them, and channels be even')
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 1)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages: list[Stage] = []
        for i, dim in enumerate(dims):
            downsample = ConvDownsample(dims[i - 1], dim, bias=False, norm=False, **dd) if i else nn.Identity()
            if i < first:
                stages.append(Stage(downsample, [ConvBlock(dim, rate, **dd) for rate in rates[i]]))
                continue
            window, heads, scanning = windows[i - first], num_heads[i - first], depths[i] - depths[i] // 2
            blocks = []
            for j, rate in enumerate(rates[i]):
                if j < scanning:
                    mixer = MambaVisionMixer(dim, window, d_state, d_conv, order, local_window, **dd)
                else:
                    mixer = SelfAttention(dim, heads, **dd)
                blocks.append(MambaVisionBlock(dim, mixer, mlp_ratio, init_values, rate, **dd))
            stages.append(WindowStage(downsample, blocks, window))
        super().__init__(
            ConvStem(in_chans, stem_dim, dims[0], **dd),
            stages,
            MapBatchNorm(dims[-1], **dd),
            list(dims),
            4,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            output_stride,
            **dd,
        )
        self.windows = tuple(windows)
        self.scan_directions = order.directions
        self.scan = order.to_json()
        self.apply(_init_weights)
        record_args(self, windows=self.windows)  # whatever image size a saved configuration has later

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What upstream exempts from weight decay beyond timm's own rule (1-D parameters, biases).

        The skip `D` and the step bias are flat there and (K, D) here, so they are named; `A_log` is decayed.
        """
        return self.scan_parameters('D', 'dt_proj_bias')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'MambaVision') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes the names of the training code and those of the Hub's safetensors files (`model.`), and detection or
        segmentation backbones (`backbone.`).
        """
        return fit_shapes(rename(state_dict, _RENAMES), model)


def _init_weights(module: nn.Module) -> None:
    if next(module.parameters(recurse=False), torch.empty(0)).is_meta:  # slow there, and nothing to fill
        return
    init_linear(module)
    if isinstance(module, SelectiveSSM):
        # the steps too start like any linear layer: upstream overwrites what Mamba starts them with
        trunc_normal_(module.x_proj_weight, std=0.02)
        trunc_normal_(module.dt_proj_weight, std=0.02)
        nn.init.zeros_(module.dt_proj_bias)


_IN_STEM = {'0': 'conv1.conv', '1': 'conv1.bn', '3': 'conv2.conv', '4': 'conv2.bn'}
_RENAMES: Renames = [
    (r'^(?:backbone|encoder|model)\.', ''),
    (r'^patch_embed\.conv_down\.([0134])\.', lambda match: f'stem.{_IN_STEM[match[1]]}.'),
    (
        r'^levels\.(\d+)\.downsample\.reduction\.0\.',
        lambda match: f'stages.{int(match[1]) + 1}.downsample.conv.',
    ),
    (r'^levels\.', 'stages.'),
    (r'\.gamma_([12])$', r'.ls\1.gamma'),
    (r'\.mixer\.conv1d_([xz])\.', r'.mixer.conv_\1.'),
    (r'\.mixer\.(x_proj|dt_proj)\.(weight|bias)$', r'.mixer.ssm.\1_\2'),
    (r'\.mixer\.(A_log|D)$', r'.mixer.ssm.\1'),
    (r'^norm\.(\w+)$', r'norm.bn.\1'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
]


checkpoint_filter_fn = MambaVision.checkpoint_filter_fn  # where timm keeps it


_512 = {'input_size': (3, 512, 512), 'pool_size': (16, 16), 'crop_pct': 0.93, 'crop_mode': 'squash'}
default_cfgs = family_cfgs(
    'mambavision',
    {
        'mambavision_tiny2': {'crop_pct': 0.98},
        'mambavision_small': {'crop_pct': 0.93},
        'mambavision_large2.in21k_ft_in1k_512': _512,
        'mambavision_large3.in21k_ft_in1k_256': {'input_size': (3, 256, 256), 'pool_size': (8, 8)},
        'mambavision_large3.in21k_ft_in1k_512': _512,
        'test_mambavision': {'input_size': (3, 96, 96), 'pool_size': (3, 3)},
    },
    pool_size=(7, 7),
    crop_pct=1.0,
    first_conv='stem.conv1.conv',
    classifier='head.fc',
)


def _create_mambavision(variant: str, pretrained: bool, args: dict, kwargs: dict) -> MambaVision:
    return build(MambaVision, variant, pretrained, sized=True, **{**args, **kwargs})


_LARGE = {'dims': (196, 392, 784, 1568), 'stem_dim': 64, 'num_heads': (16, 32), 'init_values': 1e-5}


@register_model
def mambavision_tiny(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-T: 32 M parameters."""
    args = {'depths': (1, 3, 8, 4), 'dims': (80, 160, 320, 640)}
    return _create_mambavision('mambavision_tiny', pretrained, args, kwargs)


@register_model
def mambavision_tiny2(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-T2: 35 M parameters."""
    args = {'depths': (1, 3, 11, 4), 'dims': (80, 160, 320, 640)}
    return _create_mambavision('mambavision_tiny2', pretrained, args, kwargs)


@register_model
def mambavision_small(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-S: 50 M parameters."""
    args = {'depths': (3, 3, 7, 5), 'dims': (96, 192, 384, 768), 'stem_dim': 64}
    return _create_mambavision('mambavision_small', pretrained, args, kwargs)


@register_model
def mambavision_base(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-B: 98 M parameters."""
    args = {'depths': (3, 3, 10, 5), 'dims': (128, 256, 512, 1024), 'stem_dim': 64, 'init_values': 1e-5}
    return _create_mambavision('mambavision_base', pretrained, args, kwargs)


@register_model
def mambavision_large(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-L: 228 M parameters."""
    return _create_mambavision('mambavision_large', pretrained, {'depths': (3, 3, 10, 5), **_LARGE}, kwargs)


@register_model
def mambavision_large2(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-L2: 242 M parameters; its tag `in21k_ft_in1k_512` is for images of 512 x 512."""
    return _create_mambavision('mambavision_large2', pretrained, {'depths': (3, 3, 12, 5), **_LARGE}, kwargs)


@register_model
def mambavision_large3(pretrained: bool = False, **kwargs) -> MambaVision:
    """MambaVision-L3: 740 M parameters, for images of 256 x 256 or, with the tag `in21k_ft_in1k_512`, 512 x 512."""
    args = {**_LARGE, 'depths': (3, 3, 20, 10), 'dims': (256, 512, 1024, 2048)}
    return _create_mambavision('mambavision_large3', pretrained, args, kwargs)


@register_model
def mambavision_nano(pretrained: bool = False, **kwargs) -> MambaVision:
    """Not of the paper: trains on a CPU in minutes."""
    args = {'depths': (1, 1, 2, 2), 'dims': (32, 64, 128, 256), 'stem_dim': 16, 'num_heads': (4, 8)}
    return _create_mambavision('mambavision_nano', pretrained, args, kwargs)


@register_model
def test_mambavision(pretrained: bool = False, **kwargs) -> MambaVision:
    """For tests: under 1 M parameters."""
    args = {
        'depths': (1, 1, 3, 2),
        'dims': (16, 32, 48, 64),
        'stem_dim': 8,
        'num_heads': (2, 4),
        'windows': (4, 2),  # several for each map that is tested
        'init_values': 1.0,
    }
    return _create_mambavision('test_mambavision', pretrained, args, kwargs)
