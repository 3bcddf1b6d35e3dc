"""LocalVim, of LocalMamba: Visual State Space Model with Windowed Selective Scan, https://arxiv.org/abs/2403.09338.

Official: https://github.com/hunto/LocalMamba at 75e5d1f007c303509c77d179df38f7fa19c0d05c, Apache-2.0.

Vim with four directions of its own in every layer, which a search has chosen. What each of them gives is weighed by
channel before it is added up. The stream is turned by its position before every layer, or has a class token in its
middle.

Kept, as the published weights depend on it: directions are added up, not averaged; windows that do not fit the grid are
filled up with zero tokens, which are steps of the walk; and at another size the sines and cosines of the 14x14 grid are
resampled as if they were an image. Kept for training: all linear layers start alike, step projections with no bias.
Fixed: rectangles, for which upstream puts the results of columns into the wrong places.
"""

import torch
from timm.layers import register_notrace_function
from timm.models import register_model
from torch import Tensor

from visionssm.layers import resample_grid
from visionssm.scans import scan_order

from .builder import build, family_cfgs
from .directions import layers_of_directions
from .renames import GATE_RENAMES, rename
from .tokens import RotaryMamba

__all__ = ['LocalVim']

torch.fx.wrap('resample_grid')
torch.fx.wrap('scan_order')


@torch.fx.wrap
@register_notrace_function
def insert_step(order: Tensor, position: int) -> Tensor:
    """Visiting orders (K, T) of the patches to those (K, T + 1) of a stream with a class token at `position`.

    Every walk meets the token at that step.
    """
    order = order + (order >= position).to(order.dtype)
    token = torch.full_like(order[:, :1], position)
    return torch.cat([order[:, :position], token, order[:, position:]], 1)


class LocalVim(RotaryMamba):
    """LocalVim: Vim with directions chosen for each layer, and gates on them.

    A scan offers four directions, or the model has as many sets of scan parameters as it has directions. Published
    models are `rotary` or have a `class_token`.
    """

    DIRECTIONS = 4
    DIRECTION_GATE = True
    AVERAGE = False
    INIT = 'linear'
    layered_scans = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for i, block in enumerate(self.blocks):
            block.index = i

    def _walks(self, x: Tensor, size: list[int]) -> list[Tensor]:
        walks = []
        for block in self.blocks:
            order = scan_order(block.mixer.scan, size[0], size[1], x)
            if self.cls_token is not None:
                order = insert_step(order, size[0] * size[1] // 2)
            walks.append(order)
        return walks

    def _angles(self, size: list[int]) -> Tensor:
        return resample_grid(self.rope.get_embed([14, 14]).unsqueeze(0), size, [14, 14]).squeeze(0)

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'LocalVim') -> dict[str, Tensor]:
        """Upstream names to ours, one tensor for one; position embeddings of another grid are resampled.

        The class token, and its row of the position embeddings, are left out for a model without one, and so are
        tables of sines and cosines that the model computes itself.

        Raises:
            ValueError: If the grid that the position embeddings are for is not known.
        """
        state_dict = rename(state_dict, [*_RENAMES, *GATE_RENAMES])
        tables = [f'rope.freqs_{name}' for name in ('sin', 'cos')]
        if model.rope is not None and all(name in state_dict for name in tables):
            angles = torch.cat([state_dict[name] for name in tables], 1)
            own = model.rope.get_embed([14, 14])
            if angles.shape == own.shape and torch.allclose(angles.to(own), own, atol=1e-3):
                state_dict = {name: x for name, x in state_dict.items() if name not in tables}
        return RotaryMamba.checkpoint_filter_fn(state_dict, model)


_RENAMES = [(r'\.mixer\.(A_log|D|conv1d|x_proj|dt_proj)_(\d)(?=\.|$)', r'.mixer.directions.\2.\1')]


checkpoint_filter_fn = LocalVim.checkpoint_filter_fn  # where timm keeps it


# the orders that upstream's search has found for LocalVim-T; the model of LocalVim-S that runs has one for all layers
_TINY = layers_of_directions(
    'h v_flip w7 w7_flip',
    'h_flip w2_flip w7 w7_flip',
    'h h_flip v w7',
    'h h_flip v v_flip',
    'h h_flip v v_flip',
    'h h_flip v v_flip',
    'h_flip v v_flip w7',
    'h_flip v v_flip w2_flip',
    'h h_flip v v_flip',
    'h h_flip v v_flip',
    'h v v_flip w2',
    'h v v_flip w2_flip',
    'h h_flip v_flip w7',
    'h_flip v v_flip w2',
    'h h_flip v v_flip',
    'h v w2 w2_flip',
    'v v_flip w2 w7',
    'h h_flip v w2',
    'h h_flip w2_flip w7',
    'v v_flip w2 w2_flip',
)
_SMALL = layers_of_directions('h h_flip w2 w2_flip')[0]


default_cfgs = family_cfgs(
    'localvim',
    {'test_localvim': {'input_size': (3, 96, 96)}},
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_localvim(variant: str, pretrained: bool, args: dict, kwargs: dict) -> LocalVim:
    class_token = kwargs.get('class_token', args.get('class_token', False))
    args = {'depth': 20, 'class_token': False, 'rotary': not class_token, **args}
    return build(LocalVim, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def localvim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> LocalVim:
    """LocalVim-T: 8 M parameters; with `class_token=True` its other form, whose weights have a name of their own."""
    return _create_localvim('localvim_tiny_patch16_224', pretrained, {'embed_dim': 192, 'scan': _TINY}, kwargs)


@register_model
def localvim_tiny_midcls_patch16_224(pretrained: bool = False, **kwargs) -> LocalVim:
    """LocalVim-T with a class token in the middle: 8 M parameters."""
    args = {'embed_dim': 192, 'scan': _TINY, 'class_token': True}
    return _create_localvim('localvim_tiny_midcls_patch16_224', pretrained, args, kwargs)


@register_model
def localvim_small_patch16_224(pretrained: bool = False, **kwargs) -> LocalVim:
    """LocalVim-S: 28 M parameters; no published weights."""
    return _create_localvim('localvim_small_patch16_224', pretrained, {'embed_dim': 384, 'scan': _SMALL}, kwargs)


@register_model
def test_localvim(pretrained: bool = False, **kwargs) -> LocalVim:
    """For tests: under 1 M parameters."""
    args = {'embed_dim': 48, 'depth': 3, 'd_state': 4, 'scan': _TINY[:2] + _TINY[-1:]}
    return _create_localvim('test_localvim', pretrained, args, kwargs)
