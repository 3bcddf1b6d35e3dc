"""A2Mamba: Attention-augmented State Space Models for Visual Recognition, https://arxiv.org/abs/2507.16624.

Official: https://github.com/LMMMEng/A2Mamba at a9ea14c6ab11d3cfd5cbc600651d710397a707ad, which has no licence file.

A mixer is neighbourhood attention of two halves of the heads, the second one dilated as far as the map allows, and then
a scan whose states are aggregated with the same attention weights; in the last stage, global attention instead.

Kept, as the published weights depend on it: the dilated half sees its values plus the first half's output; it follows
the size of the current map; one table of relative position bias serves both halves (upstream's checkpoints have it
twice, `rpb.0` and `rpb.1`; the latter is what upstream ends up with, and what is loaded); layer scales have a bias; the
bias of the global attention, (L, L) for L tokens, is resized like an image.

Differs from upstream: maps are channels-last throughout and 1x1 convolutions are linear layers; the constant rotary
angles are computed in fp32 instead of stored (`rope.angle` of a checkpoint is left out); NATTEN is not needed; scans in
several directions are allowed: their states are aggregated and summed.
"""

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import (
    ClassifierHead,
    ConvNormAct,
    DropPath,
    calculate_drop_path_rates,
    register_notrace_function,
    to_2tuple,
    trunc_normal_,
)
from timm.models import checkpoint, register_model
from torch import Tensor, nn

from visionssm.layers import (
    DepthwiseConv,
    FastLinears,
    Linear,
    ScanSpec,
    StateScan,
    Stem,
    activated_at_once,
    at_least_fp32,
    attention,
    call_without_autocast,
    channels_last,
    check_image_size,
    is_called,
    linear_activated_at_once,
    linear_without_autocast,
    na_av,
    na_weights,
    spread,
)
from visionssm.ops.export import wants_plain
from visionssm.scans import ScanOrder, get_scan
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .pyramid import Pyramid, Stage
from .renames import Renames, rename

__all__ = ['A2Mamba']

torch.fx.wrap('at_least_fp32')
torch.fx.wrap('check_image_size')
torch.fx.wrap('linear_without_autocast')
torch.fx.wrap('na_av')
torch.fx.wrap('na_weights')


@torch.fx.wrap
@register_notrace_function
def widest_dilation(side: int, window: int) -> int:
    """How far apart the keys of a window may be on an axis: side // window, at most the window."""
    if torch.jit.is_scripting():
        return min(side // window, window)
    if torch.jit.is_tracing():  # sizes are tensors
        return (side // window).clamp(max=window) if wants_plain() else min(int(side) // window, window)
    return torch.sym_min(side // window, window)  # sizes may be symbolic


@torch.fx.wrap
@register_notrace_function
def rotary_embedding(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """Sines and cosines of the positions of a map for heads of `dim` channels, (H, W, 1, 2 dim), fp32.

    The first half of the channels turns with the row, the second with the column. Sines carry the sign of their
    channel: minus in the first one of a pair.
    """
    exponent = torch.linspace(0.0, 1.0, dim // 4, device=like.device, dtype=torch.float32)
    angle = (1.0 / torch.pow(10000.0, exponent)).repeat_interleave(2)
    rows = torch.arange(height, device=like.device).unsqueeze(1) * angle
    columns = torch.arange(width, device=like.device).unsqueeze(1) * angle
    phase = torch.cat([rows.unsqueeze(1).expand(-1, width, -1), columns.unsqueeze(0).expand(height, -1, -1)], -1)
    signs = (2.0 * torch.arange(2, device=like.device, dtype=torch.float32) - 1.0).repeat(dim // 2)
    return torch.cat([phase.sin() * signs, phase.cos()], -1).unsqueeze(2)


@torch.fx.wrap
@register_notrace_function
def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of (B, H, W, heads, C) by what `rotary_embedding` gives."""
    sine, cosine = rope.chunk(2, -1)
    swapped = x.unflatten(-1, (x.shape[-1] // 2, 2)).flip(-1).flatten(-2)
    return (x * cosine + swapped * sine).to(x.dtype)


class LinearNormAct(FastLinears):
    """Linear layer, BatchNorm and SiLU on (B, H, W, C).

    Args:
        dim: Channels in.
        out_dim: Channels out.
    """

    def __init__(self, dim: int, out_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.proj = Linear(dim, out_dim, **dd)
        self.norm = nn.BatchNorm2d(out_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        return F.silu(self.norm(self.proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ConvStem(Stem):
    """Four 3x3 convolutions with BatchNorm: images to (B, H / 4, W / 4, D), rounded up.

    Args:
        in_chans: Image channels.
        dim: Token channels.
        min_size: Least height and width of images.
    """

    def __init__(self, in_chans: int, dim: int, min_size: int, device=None, dtype=None) -> None:
        super().__init__()
        args = {'act_layer': 'gelu', 'device': device, 'dtype': dtype}
        self.least = min_size
        self.conv1 = ConvNormAct(in_chans, dim // 2, 3, stride=2, **args)
        self.conv2 = ConvNormAct(dim // 2, dim // 2, 3, **args)
        self.conv3 = ConvNormAct(dim // 2, dim, 3, stride=2, **args)
        self.conv4 = ConvNormAct(dim, dim, 3, apply_act=False, **args)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W)."""
        check_image_size(x, self.least)
        x = self.conv1(channels_last(x))
        return self.conv4(self.conv3(self.conv2(x))).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and BatchNorm: (B, H, W, C) to (B, H / 2, W / 2, D), rounded up.

    Args:
        dim: Channels in.
        out_dim: Channels out.
    """

    def __init__(self, dim: int, out_dim: int, device=None, dtype=None) -> None:
        super().__init__()
        self.conv = ConvNormAct(dim, out_dim, 3, stride=2, apply_act=False, device=device, dtype=dtype)

    @torch.jit.ignore
    def keep_size(self, dilation: int) -> None:
        """Do not halve the map; read pixels that are `dilation` apart."""
        self.conv.conv.stride = (1, 1)
        spread(self.conv.conv, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvMlp(FastLinears):
    """Linear, GELU, depthwise 3x3 convolution with a shortcut, linear, on (B, H, W, C).

    Args:
        dim: Channels in and out.
        hidden: Channels between.
    """

    def __init__(self, dim: int, hidden: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.fc1 = Linear(dim, hidden, **dd)
        self.conv = DepthwiseConv(hidden, 3, **dd)
        self.fc2 = Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = linear_activated_at_once(x, self.fc1, 'gelu')
            if y is not None:
                return self.fc2(self.convolve(y))
        return self.fc2(self.convolve(F.gelu(self.fc1(x))))

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution and its shortcut."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = activated_at_once(x, self.conv, 'none', True, DepthwiseConv)
            if y is not None:
                return y
        return x + self.conv(x)


class AffineScale(nn.Module):
    """Layer scale with a bias, (..., C).

    Args:
        dim: Channels.
        init_value: Start of the scale; the bias starts at 0.
    """

    def __init__(self, dim: int, init_value: float, device=None, dtype=None) -> None:
        super().__init__()
        # two axes, so that timm's rule decays it, as upstream does
        self.weight = nn.Parameter(torch.full((1, dim), init_value, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        return x * self.weight + self.bias


class StateAggregation(StateScan):
    """Convolution, scan, and the scan's states averaged over neighbourhoods with given attention weights.

    Args:
        dim: Channels.
        num_heads: Heads, even; a linear layer mixes them after the average.
        window: Keys per axis of the neighbourhoods.
        scan: Scan order; it decides the number of parameter sets.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Source: arXiv:2507.16624, section 3.2 (A2SSM).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        scan: ScanOrder,
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(dim, 5, math.ceil(dim / 16), scan, local_window, **dd)
        self.num_heads = num_heads
        self.window = window
        self.fusion = Linear(num_heads, num_heads, **dd)

    def forward(self, y: Tensor, q: Tensor, k: Tensor, near: Tensor, far: Tensor, dilation: list[int]) -> Tensor:
        """Mix further.

        Args:
            y: Output of neighbourhood attention, (B, heads, H, W, D).
            q: Not used.
            k: Not used.
            near: Weights of the first half of the heads, (B, heads / 2, H, W, window^2).
            far: Weights of the second half.
            dilation: Dilation of `far`.

        Returns:
            (B, H, W, C).
        """
        states, C, skip = self.states(y.permute(0, 2, 3, 1, 4).flatten(3))
        states = states.unflatten(4, (self.num_heads, states.shape[4] // self.num_heads))
        first, second = states.permute(0, 4, 1, 2, 3, 5).flatten(4).chunk(2, 1)  # [B, heads / 2, H, W, K D] each
        first = na_av(near, first, self.window, [1, 1])
        second = na_av(far, second, self.window, dilation)
        x = self.fusion(torch.cat([first, second], 1).movedim(1, -1))  # [B, H, W, K D, heads]
        x = (
            x.unflatten(3, (C.shape[2], x.shape[3] // C.shape[2])).transpose(4, 5).flatten(4).flatten(1, 2)
        )  # [B, L, K, C]
        x = (x * C).sum(2) + skip
        return x.to(states.dtype).unflatten(1, (y.shape[2], y.shape[3]))


class GlobalAttention(nn.Module):
    """Attention of all positions with a learnt bias, whose values are the output of neighbourhood attention.

    Args:
        num_heads: Heads.
        tokens: Length that the bias is for; other lengths resize it.
    """

    def __init__(self, num_heads: int, tokens: int, device=None, dtype=None) -> None:
        super().__init__()
        # not called bias: timm's rule would leave it out of weight decay
        self.rpb = nn.Parameter(torch.zeros(1, num_heads, tokens, tokens, device=device, dtype=dtype))

    def forward(self, y: Tensor, q: Tensor, k: Tensor, near: Tensor, far: Tensor, dilation: list[int]) -> Tensor:
        """Mix further.

        Args:
            y: Values, (B, heads, H, W, D).
            q: Queries, scaled, (B, heads, H, W, D).
            k: Keys, (B, heads, H, W, D).
            near: Not used.
            far: Not used.
            dilation: Not used.

        Returns:
            (B, H, W, C).
        """
        height, width = y.shape[2], y.shape[3]
        tokens = height * width
        # at its own size the bias stays as it is; a branch would tie traced graphs to the example's size
        bias = F.interpolate(at_least_fp32(self.rpb), (tokens, tokens), mode='bicubic').to(q.dtype)
        q, k, y = q.flatten(2, 3), k.flatten(2, 3), y.flatten(2, 3)
        x = attention(q, k, y, attn_mask=bias, scale=1.0)
        return x.transpose(1, 2).flatten(2).unflatten(1, (height, width))


class A2Mixer(FastLinears):
    """Gated neighbourhood attention, then aggregated states or global attention.

    Args:
        dim: Channels C.
        num_heads: Heads, even; the channels per head are a multiple of 4.
        window: Keys per axis of the neighbourhoods, odd.
        scan: Scan order.
        tokens: For global attention instead of the scan: the length that its bias is for; 0: the scan.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Raises:
        ValueError: If the heads do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        scan: ScanOrder,
        tokens: int = 0,
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if num_heads % 2 or dim % (4 * num_heads):
            raise ValueError(
                f'{num_heads} heads of {dim} channels: heads must be even, of a multiple of 4 channels each'
            )
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.window = window
        self.scale = (dim // num_heads) ** -0.5
        self.gate = LinearNormAct(dim, dim, **dd)
        self.qkv = Linear(dim, 3 * dim, **dd)
        self.lepe = DepthwiseConv(dim, 5, **dd)
        self.rpb = nn.Parameter(torch.zeros(num_heads // 2, 2 * window - 1, 2 * window - 1, **dd))
        if tokens:
            self.mix = GlobalAttention(num_heads, tokens, **dd)
        else:
            self.mix = StateAggregation(dim, num_heads, window, scan, local_window, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.out_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.out_proj = Linear(dim, dim, **dd)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Mix (B, H, W, C); `rope` is what `rotary_embedding` gives."""
        batch, height, width, channels = x.shape
        window = self.window
        dilation = [widest_dilation(height, window), widest_dilation(width, window)]
        gate = self.gate(x)
        q, k, v = self.qkv(x).chunk(3, 3)
        lepe = self.lepe(v)
        # by their sizes: what comes from `unflatten` has those of the example in ONNX files
        heads = [batch, height, width, self.num_heads, channels // self.num_heads]
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        q = (rotate(q, rope) * self.scale).permute(0, 3, 1, 2, 4)  # [B, heads, H, W, D]
        k = rotate(k, rope).permute(0, 3, 1, 2, 4)
        v1, v2 = v.permute(0, 3, 1, 2, 4).chunk(2, 1)
        (q1, q2), (k1, k2) = q.chunk(2, 1), k.chunk(2, 1)

        near = na_weights(q1, k1, self.rpb, [1, 1])
        y1 = na_av(near, v1, window, [1, 1])
        far = na_weights(q2, k2, self.rpb, dilation)
        y2 = na_av(far, y1 + v2, window, dilation)

        y = self.mix(torch.cat([y1, y2], 1), q, k, near, far, dilation)
        y = self.out_norm((self.norm(y) + lepe) * gate)
        # upstream keeps it out of fp16, which the gated input overflows
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if is_called(self.out_proj, y):
                return call_without_autocast(self.out_proj, y)
        return linear_without_autocast(y, self.out_proj.weight, self.out_proj.bias)


class A2MambaBlock(nn.Module):
    """Positional convolution and mixer, positional convolution and MLP; all with shortcuts.

    Args:
        dim: Channels.
        mlp_ratio: Hidden / dim of the MLP.
        drop_path: Rate of dropping either branch, per sample.
        ls_init_value: Start of the layer scales; None: none.
        scale_shortcut: Scale the shortcuts instead of the branches.
        mixer_args: Arguments of `A2Mixer`.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        ls_init_value: float | None,
        scale_shortcut: bool,
        mixer_args: dict,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        scaled = ls_init_value is not None
        self.scale_shortcut = scale_shortcut
        self.cpe1 = DepthwiseConv(dim, 3, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mixer = A2Mixer(dim, **mixer_args, **dd)
        self.ls1 = AffineScale(dim, ls_init_value, **dd) if scaled else nn.Identity()
        self.cpe2 = DepthwiseConv(dim, 3, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), **dd)
        self.ls2 = AffineScale(dim, ls_init_value, **dd) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = x + self.cpe1(x)
        y = self.mixer(self.norm1(x), rope)
        if self.scale_shortcut:
            x = self.ls1(x) + self.drop_path(y)
        else:
            x = x + self.drop_path(self.ls1(y))
        x = x + self.cpe2(x)
        y = self.mlp(self.norm2(x))
        if self.scale_shortcut:
            x = self.ls2(x) + self.drop_path(y)
        else:
            x = x + self.drop_path(self.ls2(y))
        return x


class RotaryStage(Stage):
    """A stage whose blocks share a rotary embedding.

    Args:
        downsample: Module that halves the map, or an identity.
        blocks: Blocks in order.
        head_dim: Channels per head.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], head_dim: int) -> None:
        super().__init__(downsample, [])
        self.blocks = nn.ModuleList(blocks)  # not a sequence of one argument
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage on (B, H, W, C)."""
        x = self.downsample(x)
        rope = rotary_embedding(x.shape[1], x.shape[2], self.head_dim, x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, rope)
            else:
                x = block(x, rope)
        return x


class A2Mamba(Pyramid):
    """A2Mamba.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier, and no projection before it: the output has `num_features`
            channels. `reset_classifier(0)` keeps the projection, and pre-logits of `head_hidden_size` channels.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        img_size: Image size (one side, or height and width) that the bias of the global attention is for; images of
            other sizes resize it.
        depths: Blocks per stage.
        dims: Channels per stage.
        num_heads: Heads per stage, even.
        windows: Keys per axis of the neighbourhoods, per stage, odd. No map may be smaller than its window.
        mlp_ratios: Hidden / width of the MLPs, per stage.
        ls_init_values: Start of the layer scales, per stage; None: none.
        scale_shortcut: Scale the shortcuts instead of the branches.
        head_hidden_size: Channels between the last map and the classifier.
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
        img_size: int | tuple[int, int] = 224,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: Sequence[int] = (32, 64, 128, 192),
        num_heads: Sequence[int] = (2, 2, 4, 8),
        windows: Sequence[int] = (11, 9, 7, 7),
        mlp_ratios: Sequence[float] = (4, 4, 3, 3),
        ls_init_values: Sequence[float | None] = (None, None, None, None),
        scale_shortcut: bool = False,
        head_hidden_size: int = 1024,
        scan: ScanSpec = 'raster',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        per_stage = {
            'depths': depths,
            'num_heads': num_heads,
            'windows': windows,
            'mlp_ratios': mlp_ratios,
            'ls_init_values': ls_init_values,
        }
        for name, values in per_stage.items():
            if len(values) != len(dims):
                raise ValueError(f'{name} has {len(values)} stages and dims {len(dims)}: they must be equal')
        for window in windows:
            if window < 1 or window % 2 == 0:
                raise ValueError(f'windows is {tuple(windows)}; allowed are odd numbers')
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 1)
        # sides are halved and rounded up: the least side whose every map is as large as its window
        min_size = max((window - 1) * 2 ** (i + 2) + 1 for i, window in enumerate(windows))
        if min(to_2tuple(img_size)) < min_size:
            raise ValueError(f'img_size is {img_size!r}; the least is {min_size}')
        tokens = math.prod(-(-side // 2 ** (len(dims) + 1)) for side in to_2tuple(img_size))
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, dim in enumerate(dims):
            mixer_args = {
                'num_heads': num_heads[i],
                'window': windows[i],
                'scan': order,
                'local_window': local_window,
                'tokens': tokens if i == len(dims) - 1 else 0,
            }
            blocks = [
                A2MambaBlock(dim, mlp_ratios[i], rate, ls_init_values[i], scale_shortcut, mixer_args, **dd)
                for rate in rates[i]
            ]
            downsample = Downsample(dims[i - 1], dim, **dd) if i else nn.Identity()
            stages.append(RotaryStage(downsample, blocks, dim // num_heads[i]))
        super().__init__(
            ConvStem(in_chans, dims[0], min_size, **dd),
            stages,
            nn.Identity(),
            list(dims),
            4,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            output_stride,
            **dd,
        )
        self.head_hidden_size = head_hidden_size
        self.head_proj = LinearNormAct(dims[-1], head_hidden_size, **dd)
        if num_classes < 1:
            self._remove_head_proj()
        self.head = self._make_head(num_classes, global_pool, device, dtype)
        self.scan_directions = order.directions
        self.scan = order.to_json()
        if next(self.parameters()).device.type != 'meta':  # nothing to fill there, and slow for so many layers
            self.apply(_init_weights)

    def _make_head(self, num_classes: int, global_pool: str, device, dtype) -> nn.Module:
        return ClassifierHead(
            self.head_hidden_size,
            num_classes,
            global_pool,
            self.drop_rate,
            input_fmt='NHWC',
            device=device,
            dtype=dtype,
        )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Project, pool and classify a map; with `pre_logits` only project and pool."""
        return self.head(self.head_proj(x), pre_logits=pre_logits)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Set a new classifier and pooling, as in every pyramid; without either, the layer before them goes too."""
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        if num_classes < 1 and not pool:
            self._remove_head_proj()
        super().reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def _remove_head_proj(self) -> None:
        self.head_proj = nn.Identity().train(self.training)
        self.head_hidden_size = self.num_features

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What upstream exempts from weight decay beyond timm's own rule (1-D parameters, biases).

        Upstream decays all but those: `A_log`, the step projection, layer scales and bias tables are decayed. The skip
        `D` and the step bias are flat there and (K, D) here, so they are named.
        """
        return self.scan_parameters('D', 'dt_proj_bias')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'A2Mamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        This leaves out `rpb.0`, a second name of the parameter `rpb.1`, the constant `rope.angle`, and the layer before
        the classifier if the model has neither. The bias of the global attention is resized if it is for another image
        size.
        """
        if 'patch_embed.0.weight' in state_dict:
            twice = {f'{name[:-1]}0' for name in state_dict if name.endswith('.rpb.1')}
            own = {name: x for name, x in state_dict.items() if name not in twice and not name.endswith('.rope.angle')}
            state_dict = rename(own, _RENAMES)
        if isinstance(model.head_proj, nn.Identity):
            state_dict = {name: x for name, x in state_dict.items() if not name.startswith('head_proj.')}
        state_dict = fit_shapes(state_dict, model)
        shapes = {name: x.shape for name, x in model.state_dict().items() if name.endswith('.mix.rpb')}
        resized = {
            name: F.interpolate(x.float(), shapes[name][2:], mode='bicubic').to(x.dtype)
            for name, x in state_dict.items()
            if name in shapes and x.shape != shapes[name] and x.shape[:2] == shapes[name][:2]
        }
        return {**state_dict, **resized}


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _place(match: re.Match) -> str:
    """Numbered modules: an even layer is a stage, an odd one the downsampling behind it."""
    part, index, leaf = match[1], int(match[2]), match[3]
    if part == 'patch_embed':
        return f'stem.conv{index // 3 + 1}.{"bn" if index % 3 else "conv"}.{leaf}'
    if index % 2:
        return f'stages.{index // 2 + 1}.downsample.conv.{"bn" if leaf == "1" else "conv"}'
    return f'stages.{index // 2}.{leaf}'


_RENAMES: Renames = [
    (r'^classifier\.0\.', 'head_proj.proj.'),
    (r'^classifier\.1\.', 'head_proj.norm.'),
    (r'^classifier\.4\.', 'head.fc.'),
    (r'\.token_mixer\.', '.mixer.'),
    (r'\.layer_scale([12])\.', r'.ls\1.'),
    (r'\.mlp\.dwconv\.', '.mlp.conv.'),
    (r'\.gate\.0\.', '.gate.proj.'),
    (r'\.gate\.1\.', '.gate.norm.'),
    (r'\.proj\.0\.', '.out_norm.'),
    (r'\.proj\.1\.', '.out_proj.'),
    (r'\.rpb\.1$', '.rpb'),
    (r'\.rpb\.2$', '.mix.rpb'),
    (r'\.ssm\.conv2d\.', '.mix.conv.'),
    (r'\.ssm\.state_fusion\.', '.mix.fusion.'),
    (r'\.ssm\.x_proj_weight$', '.mix.ssm.x_proj_weight'),
    (r'\.ssm\.dt_projs_weight$', '.mix.ssm.dt_proj_weight'),
    (r'\.ssm\.dt_projs_bias$', '.mix.ssm.dt_proj_bias'),
    (r'\.ssm\.A_logs$', '.mix.ssm.A_log'),
    (r'\.ssm\.Ds$', '.mix.ssm.D'),
    (r'^(patch_embed|layers)\.(\d+)\.(\w+)', _place),
]


checkpoint_filter_fn = A2Mamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'a2mamba',
    {
        'a2mamba_base': {'crop_pct': 0.95},
        'a2mamba_large': {'crop_pct': 0.975},
        'test_a2mamba': {'input_size': (3, 96, 96), 'min_input_size': (3, 25, 25), 'pool_size': (3, 3)},
    },
    min_input_size=(3, 193, 193),
    pool_size=(7, 7),
    crop_pct=0.9,
    first_conv='stem.conv1.conv',
    classifier='head.fc',
)


def _create_a2mamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> A2Mamba:
    return build(A2Mamba, variant, pretrained, **{**args, **kwargs})


@register_model
def a2mamba_nano(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-N: 4 M parameters."""
    args = {'depths': (2, 2, 8, 2), 'dims': (32, 64, 128, 192), 'num_heads': (2, 2, 4, 8), 'mlp_ratios': (4, 4, 3, 3)}
    return _create_a2mamba('a2mamba_nano', pretrained, args, kwargs)


@register_model
def a2mamba_tiny(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-T: 15 M parameters."""
    args = {'depths': (2, 2, 10, 2), 'dims': (48, 96, 256, 448), 'num_heads': (2, 4, 8, 16), 'mlp_ratios': (4, 4, 3, 3)}
    return _create_a2mamba('a2mamba_tiny', pretrained, args, kwargs)


@register_model
def a2mamba_small(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-S: 31 M parameters."""
    args = {
        'depths': (2, 4, 12, 4),
        'dims': (64, 128, 320, 512),
        'num_heads': (2, 4, 10, 16),
        'mlp_ratios': (4, 4, 3, 3),
        'ls_init_values': (None, None, 1.0, 1.0),
        'scale_shortcut': True,
    }
    return _create_a2mamba('a2mamba_small', pretrained, args, kwargs)


@register_model
def a2mamba_base(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-B: 51 M parameters."""
    args = {
        'depths': (4, 6, 12, 6),
        'dims': (96, 192, 384, 512),
        'num_heads': (4, 8, 12, 16),
        'mlp_ratios': (4, 4, 3.75, 3.75),
        'ls_init_values': (1.0, 1.0, 1e-6, 1e-6),
    }
    return _create_a2mamba('a2mamba_base', pretrained, args, kwargs)


@register_model
def a2mamba_large(pretrained: bool = False, **kwargs) -> A2Mamba:
    """A2Mamba-L: 94 M parameters (the paper says 95)."""
    args = {
        'depths': (4, 6, 18, 6),
        'dims': (96, 192, 448, 672),
        'num_heads': (4, 8, 16, 24),
        'mlp_ratios': (4, 4, 4, 4),
        'ls_init_values': (1.0, 1.0, 1e-6, 1e-6),
    }
    return _create_a2mamba('a2mamba_large', pretrained, args, kwargs)


@register_model
def test_a2mamba(pretrained: bool = False, **kwargs) -> A2Mamba:
    """For tests: under 1 M parameters."""
    args = {
        'img_size': 96,
        'depths': (1, 1, 2, 1),
        'dims': (16, 32, 48, 64),
        'num_heads': (2, 2, 4, 4),
        'windows': (7, 3, 1, 1),  # for the smallest images that are tested
        'mlp_ratios': (2, 2, 2, 2),
        'ls_init_values': (None, 1.0, 1.0, None),
        'head_hidden_size': 128,
    }
    return _create_a2mamba('test_a2mamba', pretrained, args, kwargs)
