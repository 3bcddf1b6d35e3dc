"""EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba, https://arxiv.org/abs/2403.09977 (AAAI 2025).

Official: https://github.com/TerryPei/EfficientVMamba at 0bc5ee288b402d648641f5494b73e9d152e0c62b, Apache-2.0 by its
README and the cards of its files.

Stem, patch merging and head are VMamba's; stages 1 and 2 scan, stages 3 and 4 are inverted residuals. Kept, as the
published weights depend on it: each direction walks a quarter of the tokens, and one gate serves scan and convolution.

Upstream's configurations contradict its files twice (width of small, depths of tiny); the files are followed.
"""

import re
from collections.abc import Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import SS2D, ChannelGate, ConvNorm, FastLinears, Linear, NormedGate, ScanSpec
from visionssm.scans import get_scan
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .pyramid import Pyramid, init_linear
from .renames import VSSM_RENAMES, place_renames, rename
from .vssm import make_stages, make_stem

__all__ = ['EfficientVMamba']


class ScanBlock(FastLinears):
    """x + drop_path(gate(scan) + gate(convolutions)), both of the normed x, on (B, H, W, C).

    Args:
        dim: Channels.
        drop_path: Rate of dropping the sum, per sample.
        mixer_args: Arguments of `SS2D`.
    """

    def __init__(self, dim: int, drop_path: float, mixer_args: dict, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.mixer = SS2D(dim, gate=True, conv_bias=True, **mixer_args, **dd)
        self.conv = ConvNorm(dim, dim, 3, groups=dim, bias=True, **dd)
        self.proj = Linear(dim, dim, **dd)
        self.gate = NormedGate(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        y = self.norm(x)
        y, z = self.mixer(y), self.proj(F.gelu(self.conv(y)))
        y = self.gate(y.flatten(1, 2)) + self.gate(z.flatten(1, 2))
        return x + self.drop_path(y.reshape(x.shape))


class InvertedResidual(FastLinears):
    """Widening, depthwise 3x3 convolution, squeeze-and-excitation, narrowing, with batch norms, on (B, H, W, C).

    Args:
        dim: Channels in and out; four times as many between.
        drop_path: Rate of dropping the branch, per sample.
    """

    def __init__(self, dim: int, drop_path: float, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        hidden = 4 * dim
        self.expand = ConvNorm(dim, hidden, **dd)
        self.conv = ConvNorm(hidden, hidden, 3, groups=hidden, **dd)
        self.gate = ChannelGate(hidden, hidden // 8, **dd)
        self.reduce = ConvNorm(hidden, dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        y = F.relu(self.conv(F.relu(self.expand(x))))
        return x + self.drop_path(self.reduce(y * self.gate(y)))


class EfficientVMamba(Pyramid):
    """EfficientVMamba: two stages that scan, two of inverted residuals.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        d_state: States N per channel.
        expand: Inner channels of the mixer over its width.
        patch_size: Stride of the stem.
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
        depths: Sequence[int] = (2, 2, 4, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        d_state: int = 16,
        expand: float = 2.0,
        patch_size: int = 4,
        scan: ScanSpec = MappingProxyType({'name': 'atrous', 'pad': 'zero'}),
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 4)
        mixer_args = {'d_state': d_state, 'expand': expand, 'scan': order, 'local_window': local_window}

        def scanning(dim: int, rate: float) -> nn.Module:
            return ScanBlock(dim, rate, mixer_args, **dd)

        def residual(dim: int, rate: float) -> nn.Module:
            return InvertedResidual(dim, rate, **dd)

        super().__init__(
            make_stem('patch', in_chans, dims[0], patch_size, **dd),
            make_stages(
                'merge', depths, dims, drop_path_rate, [scanning if i < 2 else residual for i in range(len(dims))], **dd
            ),
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
        """The skips `D`: flat and so exempt upstream, (K, D) here, as in VMamba."""
        return self.scan_parameters('D')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'EfficientVMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes VMamba's older names too, and detection backbones (`backbone.`).
        """
        if 'stages.0.blocks.0.mixer.in_proj.weight' in state_dict:
            return state_dict
        depths = [len(stage.blocks) for stage in model.stages]

        def place(match: re.Match) -> str:
            # the stages that do not scan are one numbered list: a permutation, blocks, a permutation, patch merging
            stage, index = int(match[1]), int(match[2])
            is_block = 0 < index <= depths[stage] if stage < len(depths) else True
            return f'layers.{stage}.{f"blocks.{index - 1}" if is_block else "downsample"}.'

        own = rename(state_dict, [(r'^(?:backbone\.)?layers\.(\d)\.(\d+)\.', place), *VSSM_RENAMES])
        own = {re.sub(r'(\.blocks\.\d+)\.norm1\.', r'\1.norm.', name): x for name, x in own.items()}
        return fit_shapes(rename(own, [*_RENAMES, *place_renames(model)]), model)


_LAYERS = {'conv_pw': 'expand', 'conv_dw': 'conv', 'conv_branch': 'conv', 'conv_pw2': 'reduce'}
_RENAMES = [
    (r'\.conv_branch\.3\.', '.proj.'),
    (
        r'\.(conv_pw2?|conv_dw|conv_branch)\.([01])\.',
        lambda match: f'.{_LAYERS[match[1]]}.{"bn" if match[2] == "1" else "conv"}.',
    ),
    (r'\.se\.(?:conv_reduce|global_reduce)\.', '.gate.fc1.'),
    (r'\.se\.(?:conv_expand|channel_select)\.', '.gate.fc2.'),
    (r'\.se\.norm\.', '.gate.norm.'),
]


checkpoint_filter_fn = EfficientVMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'efficientvmamba',
    {'test_efficientvmamba': {'input_size': (3, 96, 96), 'pool_size': (3, 3)}},
    pool_size=(7, 7),
    first_conv='stem.conv',
    classifier='head.fc',
)


def _create_efficientvmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> EfficientVMamba:
    return build(EfficientVMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """EfficientVMamba-T: 6.5 M parameters."""
    return _create_efficientvmamba('efficientvmamba_tiny', pretrained, {'dims': (48, 96, 192, 384)}, kwargs)


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """EfficientVMamba-S: 11 M parameters."""
    return _create_efficientvmamba('efficientvmamba_small', pretrained, {'dims': (64, 128, 256, 512)}, kwargs)


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """EfficientVMamba-B: 34 M parameters."""
    args = {'depths': (2, 2, 9, 2), 'dims': (96, 192, 384, 768)}
    return _create_efficientvmamba('efficientvmamba_base', pretrained, args, kwargs)


@register_model
def test_efficientvmamba(pretrained: bool = False, **kwargs) -> EfficientVMamba:
    """For tests: under 1 M parameters."""
    args = {'depths': (1, 1, 1, 1), 'dims': (16, 32, 48, 64)}
    return _create_efficientvmamba('test_efficientvmamba', pretrained, args, kwargs)
