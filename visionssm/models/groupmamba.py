"""GroupMamba: Efficient Group-Based Visual State Space Model, https://arxiv.org/abs/2407.13772 (CVPR 2025).

Official: https://github.com/Amshaker/GroupMamba at c1800ed262e995de3c645348e7e0202e8385f334, MIT.

Channels are mixed in groups, each along one direction of the scan. Kept, since the weights depend on it: the mixer
norms its input and, with the same weights, its output; its skip multiplies (output * scale * normed input); and before
the classifiers, a block of its own refines the pooled token, whose scan has one step: the gradients of its `A_log` are
exactly 0.

Differs from upstream: gradients of the column directions are right on maps that are not square, where upstream's own
backward swaps height and width; and `train()` gives the average of both classifiers as `eval()` does, unless distilled
training is switched on, as in timm.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, calculate_drop_path_rates, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    SS2D,
    ChannelGate,
    ConvDownsample,
    DepthwiseMlp,
    FastLinears,
    Linear,
    Mlp,
    ScanSpec,
    SelectiveSSM,
    Stem,
    at_least_fp32,
    channels_last,
    check_image_size,
    decay_rates,
    is_untouched,
    scan_projected,
    split_projection,
)
from visionssm.ops import depthwise_at_once
from visionssm.scans import ScanOrder, get_scan, scan_order
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .distilled import DistilledHead, DistilledPyramid
from .pyramid import Stage
from .renames import SCAN_RENAMES, rename

__all__ = ['GroupMamba']


class ConvStem(Stem):
    """Three convolutions with batch norm and ReLU, then `ConvDownsample`: tokens (B, H / p, W / p, D), rounded up.

    Args:
        in_chans: Image channels.
        hidden: Channels of the three convolutions.
        dim: Token channels.
        patch_size: Stride p of all together: 2 or 4.

    Raises:
        ValueError: If `patch_size` is neither.
    """

    def __init__(self, in_chans: int, hidden: int, dim: int, patch_size: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        if patch_size not in (2, 4):
            raise ValueError(f'patch_size is {patch_size!r}; allowed are 2 and 4')
        self.conv1 = ConvNormAct(in_chans, hidden, 7, stride=patch_size // 2, **dd)
        self.conv2 = ConvNormAct(hidden, hidden, 3, **dd)
        self.conv3 = ConvNormAct(hidden, hidden, 3, **dd)
        self.downsample = ConvDownsample(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        check_image_size(x, self.least)
        x = self.conv3(self.conv2(self.conv1(channels_last(x))))
        return self.downsample(x.permute(0, 2, 3, 1))


class GroupMixer(FastLinears):
    """Modulated group mixer: each group of channels goes through a gated `SS2D` along one direction of the scan.

    Args:
        dim: Channels.
        scan: Scan order; there are as many groups as it has directions, and group g walks direction g.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Raises:
        ValueError: If the groups do not divide the channels.

    Source: arXiv:2407.13772, section 3.3; Amshaker/GroupMamba@c1800ed.
    """

    def __init__(self, dim: int, scan: ScanOrder, local_window: int = 0, device=None, dtype=None) -> None:
        super().__init__()
        groups = scan.directions
        if dim % groups:
            raise ValueError(f'scan {scan.to_json()} has {groups} directions, which do not divide {dim} channels')
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.channel_gate = ChannelGate(dim, dim // 16, **dd)
        self.groups = nn.ModuleList(
            SS2D(dim // groups, gate=True, conv_bias=True, scan=scan, direction=g, local_window=local_window, **dd)
            for g in range(groups)
        )
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.proj = Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Norm and mix (B, H, W, C)."""
        x = self.norm(x)
        y = self.mix_groups(x) * self.skip_scale * x * self.channel_gate(x)
        return self.proj(self.norm(y))

    def mix_groups(self, x: Tensor) -> Tensor:
        """Mix each group of channels of (B, H, W, C): all at once unless something is attached to a group."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if type(x) is Tensor and self._are_alike():
                return _mix_at_once(x, self.groups)
        parts = x.chunk(len(self.groups), -1)
        return torch.cat([group(parts[g]) for g, group in enumerate(self.groups)], -1)

    @torch.jit.ignore
    def _are_alike(self) -> bool:
        """Whether the groups differ in their weights alone."""
        if not all(is_untouched(group, _GROUP_LAYERS) for group in self.groups):
            return False
        settings = {(group.scan, group.ssm.local_window, group.norm.eps) for group in self.groups}
        biased = [layer for group in self.groups for layer in (group.in_proj, group.out_proj) if layer.bias is not None]
        return len(settings) == 1 and not biased


_GROUP_LAYERS = frozenset({SS2D, SelectiveSSM, Linear, nn.Conv2d, nn.SiLU, nn.LayerNorm, nn.Identity})


def _mix_at_once(x: Tensor, groups: Sequence[SS2D]) -> Tensor:
    """What the groups give, in one product, convolution and scan for all where each of them has one.

    Args:
        x: Tokens, (B, H, W, C).
        groups: K modules that differ in their weights alone; group k has the k-th C / K channels and direction k.

    Returns:
        (B, H, W, C).
    """
    batch, height, width, _ = x.shape
    K, ssms, first = len(groups), [group.ssm for group in groups], groups[0]
    normalized = first.norm.normalized_shape  # a number in traced programs, too

    def grouped(x: Tensor) -> Tensor:  # (B, L, C) to (B, L, K, C / K)
        return x.reshape(batch, x.shape[1], K, *normalized)

    def product(x: Tensor, weights: Sequence[Tensor]) -> Tensor:  # (B, L, K, D) by K of (E, D) to (B, L, K, E)
        y = torch.bmm(x.flatten(0, 1).transpose(0, 1), torch.stack(list(weights)).transpose(1, 2))
        return y.reshape(K, batch, x.shape[1], weights[0].shape[0]).permute(1, 2, 0, 3)

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(tensors))

    u, z = product(grouped(x.flatten(1, 2)), [group.in_proj.weight for group in groups]).chunk(2, -1)
    u, conv = u.reshape(x.shape), first.conv
    weight, bias = (joined(getattr(group.conv, name) for group in groups) for name in ('weight', 'bias'))
    keeps_size = conv.stride == conv.padding == conv.dilation == (1, 1)
    activated = depthwise_at_once(u, weight, bias, 'silu', (1, 1)) if keeps_size else None
    if activated is None:
        u = F.conv2d(u.permute(0, 3, 1, 2), weight, bias, 1, conv.padding, conv.dilation, K * conv.groups)
        activated = F.silu(u).permute(0, 2, 3, 1)
    u = activated.flatten(1, 2)
    order = scan_order(first.scan, height, width, u)
    u = grouped(F.pad(u, [0, 0, 0, 1]) if first.zeros else u)
    dt, B, C = split_projection(product(u, [ssm.x_proj_weight[0] for ssm in ssms]), first.ssm.d_state)
    y = scan_projected(
        u=u,
        dt=dt,
        dt_proj=joined(ssm.dt_proj_weight for ssm in ssms),
        A=decay_rates(joined(ssm.A_log for ssm in ssms)),
        B=B,
        C=C,
        D=at_least_fp32(joined(ssm.D for ssm in ssms)),
        delta_bias=at_least_fp32(joined(ssm.dt_proj_bias for ssm in ssms)) * first.ssm.bias_count,
        order=order,
        merge=False,
        local_window=first.ssm.local_window,
    )
    y = F.layer_norm(y[:, : height * width], normalized, eps=first.norm.eps)
    scale, shift = (torch.stack([getattr(group.norm, name) for group in groups]) for name in ('weight', 'bias'))
    y = torch.addcmul(shift, y, scale).to(x.dtype) * F.silu(z)
    return product(y, [group.out_proj.weight for group in groups]).reshape(x.shape)


class GroupMambaBlock(nn.Module):
    """Residual block: group mixer, then an MLP with a depthwise convolution.

    Args:
        dim: Channels.
        mlp_ratio: Hidden / dim of the MLP.
        drop_path: Rate of dropping either branch, per sample.
        scan: Scan order; it decides the number of groups.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        drop_path: float,
        scan: ScanOrder,
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.mixer = GroupMixer(dim, scan, local_window, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = DepthwiseMlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = x + self.drop_path(self.mixer(x))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """Residual block of the pooled token: group mixer with its norm behind, then an MLP with its norm before.

    Args:
        dim: Channels.
        scan: Scan order; it decides the number of groups, and no more, as there is one token.
    """

    def __init__(self, dim: int, scan: ScanOrder, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.mixer = GroupMixer(dim, scan, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Refine (B, C)."""
        y = self.mixer(x.unsqueeze(1).unsqueeze(1)).flatten(1)
        x = x + self.norm1(y)
        return x + self.mlp(self.norm2(x))


class GroupHead(DistilledHead):
    """Pooling, `ClassBlock`, norm, and two classifiers.

    Without pooling there is no token to refine: neither block nor norm.

    Args:
        dim: Channels.
        num_classes: Classes; 0: no classifiers.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        drop_rate: Dropout before the classifiers.
        scan: Scan order; it decides the number of groups.
    """

    def __init__(
        self, dim: int, num_classes: int, global_pool: str, drop_rate: float, scan: ScanOrder, device=None, dtype=None
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(dim, num_classes, global_pool, drop_rate, **dd)
        self.block = ClassBlock(self.num_features, scan, **dd) if global_pool else nn.Identity()
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6, **dd) if global_pool else nn.Identity()

    def refine(self, x: Tensor) -> Tensor:
        """Refine and norm the pooled token."""
        return self.norm(self.block(x))


class GroupMamba(DistilledPyramid):
    """GroupMamba with two classifiers.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifiers.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        mlp_ratios: Hidden / width of the MLPs, per stage.
        stem_dim: Channels inside the stem.
        patch_size: Stride of the stem: 2 or 4.
        scan: Scan order of all mixers: name, dict, JSON string or `ScanOrder`. If it does not offer four directions,
            channels are in as many groups as it has directions, and have to be a multiple of that.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none. The token that
            the head refines has none.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        output_stride: Pixels per token of the last map, 8, 16 or 32: later stages are dilated instead of halved.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    final_norm = r'(?:norm4|head\.norm)\.(\w+)'

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        depths: Sequence[int] = (3, 4, 9, 3),
        dims: Sequence[int] = (64, 128, 348, 448),
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        stem_dim: int = 32,
        patch_size: int = 4,
        scan: ScanSpec = 'groupwise',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        if not len(depths) == len(dims) == len(mlp_ratios):
            raise ValueError(
                f'depths has {len(depths)} stages, dims {len(dims)} and mlp_ratios {len(mlp_ratios)}: '
                'they must be equal'
            )
        order = get_scan(scan, 4)
        self.scan = order.to_json()  # the head is built from it
        dd = {'device': device, 'dtype': dtype}
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        last = len(dims) - 1
        stages = [
            Stage(
                ConvDownsample(dims[i - 1], dim, **dd) if i else nn.Identity(),
                [GroupMambaBlock(dim, mlp_ratios[i], rate, order, local_window, **dd) for rate in rates[i]],
                nn.LayerNorm(dim, eps=1e-6, **dd) if i < last else None,
            )
            for i, dim in enumerate(dims)
        ]
        super().__init__(
            ConvStem(in_chans, stem_dim, dims[0], patch_size, **dd),
            stages,
            nn.Identity(),  # the norm follows the pooling
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
        self.apply(_init_weights)

    def _make_head(self, num_classes: int, global_pool: str, device, dtype) -> nn.Module:
        return GroupHead(
            self.num_features, num_classes, global_pool, self.drop_rate, get_scan(self.scan), device, dtype
        )

    def _init_head(self) -> None:
        self.head.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The skips `D`: flat and so exempt upstream, (1, D) here. Upstream decays `A_log` and `dt_proj_bias`."""
        return self.scan_parameters('D')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'GroupMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        The weights that refine the pooled token are left out for a model without pooling.
        """
        if 'stages.0.blocks.0.mixer.proj.weight' not in state_dict:
            state_dict = fit_shapes(rename(state_dict, _RENAMES), model)
        if isinstance(model.head.block, nn.Identity):
            state_dict = {
                name: x for name, x in state_dict.items() if not name.startswith(('head.block.', 'head.norm.'))
            }
        return state_dict


def _init_weights(module: nn.Module) -> None:
    if not isinstance(module, nn.Linear | nn.Conv2d) or module.weight.is_meta:  # slow on meta, and nothing to fill
        return
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    else:
        height, width = module.kernel_size
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / (height * width * module.out_channels)))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


_RENAMES = [
    (r'\.dwconv\.dwconv\.', '.conv.'),
    (r'^post_network\.0\.', 'head.block.'),
    (r'^norm4\.', 'head.norm.'),
    (r'^head\.(weight|bias)$', r'head.fc.\1'),
    (r'^dist_head\.', 'head.fc_dist.'),
    (r'\.attn\.fc(\d)\.', r'.mixer.channel_gate.fc\1.'),
    (r'\.attn\.mamba_g(\d+)\.', lambda match: f'.mixer.groups.{int(match[1]) - 1}.'),
    (r'\.attn\.', '.mixer.'),
    (r'^patch_embed1\.conv\.(\d)\.', lambda match: f'stem.conv{int(match[1]) // 3 + 1}.{_IN_CONV[int(match[1]) % 3]}.'),
    (r'^patch_embed1\.', 'stem.downsample.'),
    (r'^patch_embed(\d)\.', lambda match: f'stages.{int(match[1]) - 1}.downsample.'),
    (r'\bdownsample\.proj\.', 'downsample.conv.'),
    (r'^block(\d)\.', lambda match: f'stages.{int(match[1]) - 1}.blocks.'),
    (r'^norm(\d)\.', lambda match: f'stages.{int(match[1]) - 1}.norm.'),
    *SCAN_RENAMES,
]
_IN_CONV = ('conv', 'bn')


checkpoint_filter_fn = GroupMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'groupmamba',
    {'test_groupmamba': {'input_size': (3, 96, 96), 'pool_size': (3, 3)}},
    pool_size=(7, 7),
    first_conv='stem.conv1.conv',
    classifier=('head.fc', 'head.fc_dist'),
)


def _create_groupmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> GroupMamba:
    return build(GroupMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def groupmamba_tiny(pretrained: bool = False, **kwargs) -> GroupMamba:
    """GroupMamba-T: 23 M parameters."""
    args = {'depths': (3, 4, 9, 3), 'dims': (64, 128, 348, 448), 'stem_dim': 32}
    return _create_groupmamba('groupmamba_tiny', pretrained, args, kwargs)


@register_model
def groupmamba_small(pretrained: bool = False, **kwargs) -> GroupMamba:
    """GroupMamba-S: 34 M parameters."""
    args = {'depths': (3, 4, 16, 3), 'dims': (64, 128, 348, 512), 'stem_dim': 64}
    return _create_groupmamba('groupmamba_small', pretrained, args, kwargs)


@register_model
def groupmamba_base(pretrained: bool = False, **kwargs) -> GroupMamba:
    """GroupMamba-B: 57 M parameters."""
    args = {'depths': (3, 6, 21, 3), 'dims': (96, 192, 424, 512), 'stem_dim': 64}
    return _create_groupmamba('groupmamba_base', pretrained, args, kwargs)


@register_model
def groupmamba_nano(pretrained: bool = False, **kwargs) -> GroupMamba:
    """Not of the paper: trains on a CPU in minutes (for small images give `patch_size=2`)."""
    args = {'depths': (1, 1, 2, 1), 'dims': (32, 64, 128, 192), 'mlp_ratios': (4, 4, 4, 4), 'stem_dim': 16}
    return _create_groupmamba('groupmamba_nano', pretrained, args, kwargs)


@register_model
def test_groupmamba(pretrained: bool = False, **kwargs) -> GroupMamba:
    """For tests: under 1 M parameters."""
    args = {'depths': (1, 1, 2, 1), 'dims': (16, 32, 64, 96), 'mlp_ratios': (4, 4, 4, 4), 'stem_dim': 8}
    return _create_groupmamba('test_groupmamba', pretrained, args, kwargs)
