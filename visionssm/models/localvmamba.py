"""LocalVMamba, of LocalMamba: Visual State Space Model with Windowed Selective Scan, https://arxiv.org/abs/2403.09338.

Official: https://github.com/hunto/LocalMamba at 75e5d1f007c303509c77d179df38f7fa19c0d05c, Apache-2.0.

The first VMamba, with directions of its own in every layer, which a search has chosen. What each of them gives is
weighed by channel before it is added up.

Kept, as the published weights depend on it: windows that do not fit a map are filled up with zero tokens, which are
steps of the walk. Fixed: rectangles, for which upstream puts the results of columns into the wrong places.
"""

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import SS2D, LayerScans
from visionssm.scans import get_layer_scans, layer_scans_to_json
from visionssm.weights.checkpoint import fit_shapes

from .builder import build, family_cfgs
from .directions import layers_of_directions
from .pyramid import Pyramid, init_linear
from .renames import GATE_RENAMES, VSSM_RENAMES, place_renames, rename
from .vssm import make_stages, make_stem

__all__ = ['LocalVMamba']


class ScanBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), on (B, H, W, C).

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
        mixer_args: Arguments of `SS2D`.
    """

    def __init__(self, dim: int, drop_path: float, mixer_args: dict, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = SS2D(dim, gate=True, conv_bias=True, direction_gate=True, **mixer_args, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        return x + self.drop_path(self.mixer(self.norm1(x)))


class LocalVMamba(Pyramid):
    """LocalVMamba: the first VMamba with directions chosen for each layer, and gates on them.

    Args:
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        depths: Blocks per stage.
        dims: Channels per stage.
        d_state: States N per channel.
        expand: Inner channels of the mixer over its width.
        patch_size: Stride of the stem.
        scan: Scan orders: one for each block, or one for all; each a name, dict, JSON string or `ScanOrder`, together a
            sequence or a JSON list. All have equally many directions: four, if they offer four.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        output_stride: Pixels per token of the last map, 8, 16 or 32: later stages are dilated instead of halved.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    layered_scans = True

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        d_state: int = 16,
        expand: float = 2.0,
        patch_size: int = 4,
        scan: LayerScans = 'list',
        local_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        orders = get_layer_scans(scan, sum(depths), 4)
        left = iter(orders)

        def block(dim: int, rate: float) -> nn.Module:  # they are made in their order
            mixer_args = {'d_state': d_state, 'expand': expand, 'scan': next(left), 'local_window': local_window}
            return ScanBlock(dim, rate, mixer_args, **dd)

        super().__init__(
            make_stem('patch', in_chans, dims[0], patch_size, **dd),
            make_stages('merge', depths, dims, drop_path_rate, block, **dd),
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
        self.scan_directions = orders[0].directions
        self.scan = layer_scans_to_json(orders)
        self.apply(init_linear)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The skips `D`: flat and so exempt upstream, (K, D) here, as in VMamba."""
        return self.scan_parameters('D')

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'LocalVMamba') -> dict[str, Tensor]:
        """Upstream names and shapes to ours, one tensor for one; names that fit nothing are left for the strict check.

        Takes VMamba's older names too, and detection or segmentation backbones (`backbone.`).
        """
        if 'stages.0.blocks.0.mixer.in_proj.weight' in state_dict:
            return state_dict
        return fit_shapes(rename(state_dict, [*VSSM_RENAMES, *GATE_RENAMES, *place_renames(model)]), model)


# the orders that upstream's search has found
_TINY = layers_of_directions(
    'h h_flip w7 w7_flip',
    'h_flip v_flip w2 w2_flip',
    'h_flip v_flip w2_flip w7',
    'h_flip v v_flip w2',
    'h h_flip v_flip w2_flip',
    'h_flip v_flip w2 w2_flip',
    'h w2_flip w7 w7_flip',
    'h h_flip v v_flip',
    'h v_flip w7 w7_flip',
    'h_flip v w2 w7_flip',
    'v v_flip w2 w7_flip',
    'h h_flip v_flip w2_flip',
    'v_flip w2_flip w7 w7_flip',
    'h_flip v_flip w2_flip w7_flip',
    'h_flip v w7 w7_flip',
)
_SMALL = layers_of_directions(
    'h v v_flip w7_flip',
    'h h_flip v w7',
    'h_flip v v_flip w7',
    'h_flip v w2_flip w7',
    'h_flip v w2_flip w7',
    'h_flip v_flip w2 w7_flip',
    'h_flip v v_flip w7',
    'h v v_flip w7',
    'h v v_flip w7',
    'h v v_flip w7_flip',
    'h h_flip v v_flip',
    'h v v_flip w2',
    'v v_flip w2_flip w7',
    'h h_flip v w2',
    'h_flip v v_flip w7_flip',
    'h h_flip v v_flip',
    'h v v_flip w7_flip',
    'h v v_flip w7_flip',
    'h h_flip v_flip w7',
    'h_flip v_flip w2_flip w7',
    'h_flip v v_flip w7_flip',
    'v v_flip w7 w7_flip',
    'h v v_flip w7_flip',
    'h_flip v v_flip w2',
    'h v v_flip w2_flip',
    'h h_flip v w7',
    'h h_flip w7 w7_flip',
    'h v_flip w2 w2_flip',
    'h v_flip w2 w7',
    'h v v_flip w7_flip',
    'h_flip v w2_flip w7',
    'h_flip v_flip w7 w7_flip',
    'h v w7 w7_flip',
)


checkpoint_filter_fn = LocalVMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'localvmamba',
    {'test_localvmamba': {'input_size': (3, 96, 96), 'pool_size': (3, 3)}},
    pool_size=(7, 7),
    first_conv='stem.conv',
    classifier='head.fc',
)


def _create_localvmamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> LocalVMamba:
    return build(LocalVMamba, variant, pretrained, **{**args, **kwargs})


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs) -> LocalVMamba:
    """LocalVMamba-T: 26 M parameters; no published weights."""
    return _create_localvmamba('localvmamba_tiny', pretrained, {'scan': _TINY}, kwargs)


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs) -> LocalVMamba:
    """LocalVMamba-S: 50 M parameters."""
    args = {'depths': (2, 2, 27, 2), 'scan': _SMALL}
    return _create_localvmamba('localvmamba_small', pretrained, args, kwargs)


@register_model
def test_localvmamba(pretrained: bool = False, **kwargs) -> LocalVMamba:
    """For tests: under 1 M parameters."""
    args = {'depths': (1, 1, 1, 1), 'dims': (16, 32, 48, 64), 'd_state': 4, 'scan': _TINY[:4]}
    return _create_localvmamba('test_localvmamba', pretrained, args, kwargs)
