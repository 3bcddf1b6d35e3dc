"""What detectors and segmenters take from a model: maps of some levels, through norms of their own."""

import re
import sys
from collections.abc import Sequence

from torch import Tensor, nn

from ._adapter import PlainMambaAdapter
from ._checkpoint import check_fit
from ._timm import take_indices


class DenseModel(nn.Module):
    """A model cut down to the maps of some levels; the layers behind the last one, the final norm and the head go.

    Args:
        model: Model with timm's `forward_intermediates` and `feature_info`. It is changed.
        out_indices: Stages (pyramids) or blocks (models of one resolution) whose maps are wanted, rising; negative
            ones count from the end.
        out_norm: Give every map a LayerNorm over channels, `outnorm{index}`, with the epsilon of the final norm.
        out_channels: Project every map to as many channels before its norm, by `outproj{index}`; None: do not.

    Attributes:
        cut: Names of the weights that were cut off the model.
        out_indices: As resolved.
        channels: Channels of the maps.
        reductions: Pixels per element of the maps, along a side.

    Raises:
        ValueError: If a level does not exist, or they do not rise.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: Sequence[int],
        out_norm: bool = False,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        taken, _ = take_indices(len(model.feature_info), out_indices)
        if not taken or taken != sorted(set(taken)):
            raise ValueError(f'out_indices is {tuple(out_indices)!r}; allowed are rising ones')
        levels = [model.feature_info[i] for i in taken]
        eps = getattr(model.norm, 'eps', 1e-5)
        before = set(model.state_dict())
        model.prune_intermediate_layers(taken, prune_norm=True, prune_head=True)
        self.model = model
        self.cut = before - set(model.state_dict())
        self.out_indices = tuple(taken)
        self.channels = [out_channels or level['num_chs'] for level in levels]
        self.reductions = [level['reduction'] for level in levels]
        self.out_norm = out_norm
        self.out_channels = out_channels
        for i, level, width in zip(taken, levels, self.channels, strict=True):
            if out_channels is not None:
                self.add_module(f'outproj{i}', nn.Linear(level['num_chs'], width))
            if out_norm:
                self.add_module(f'outnorm{i}', nn.LayerNorm(width, eps=eps))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to maps (B, D, H', W'), contiguous."""
        maps = self.model.forward_intermediates(x, list(self.out_indices), output_fmt='NHWC', intermediates_only=True)
        out = []
        for i, y in zip(self.out_indices, maps, strict=True):
            if self.out_channels is not None:
                y = self.get_submodule(f'outproj{i}')(y)
            if self.out_norm:
                y = self.get_submodule(f'outnorm{i}')(y)
            out.append(y.permute(0, 3, 1, 2).contiguous())
        return tuple(out)

    def added_name(self, name: str) -> str | None:
        """Our name of what upstream adds to the model under `name`; None if it is the model's own."""
        if self.out_norm and name.startswith('ln1.'):  # PlainMamba's final norm is that of its last map
            return f'outnorm{self.out_indices[-1]}.{name[4:]}'
        match = re.match(r'(?:outnorm|norm_layer)(\d+)\.(\w+)$', name)  # VMamba, MSVMamba; PlainMamba
        if match:
            return f'outnorm{match[1]}.{match[2]}'
        match = re.match(r'out(norm|_map)_(\d+)\.(\w+)$', name)  # LBVim counts the maps wanted
        if match and int(match[2]) < len(self.out_indices):
            kind = 'outnorm' if match[1] == 'norm' else 'outproj'
            return f'{kind}{self.out_indices[int(match[2])]}.{match[3]}'
        return None


def dense_state_dict(state_dict: dict[str, Tensor], dense: DenseModel | PlainMambaAdapter) -> dict[str, Tensor]:
    """Weights of an upstream classifier, detector or segmenter, or of `dense` itself, under the names of `dense`.

    What was cut off the model, and its classifier, are left out.

    Args:
        state_dict: The weights; if there are names under `backbone.`, only those are taken.
        dense: What they are for.
    """
    inside = {name.removeprefix('backbone.'): x for name, x in state_dict.items() if name.startswith('backbone.')}
    state_dict = inside or state_dict
    if any(name.startswith('model.') for name in state_dict):
        return state_dict
    model, added, own = dense.model, {}, {}
    for name, x in state_dict.items():
        ours = dense.added_name(name)
        if ours is None:
            own[name] = x
        else:
            added[ours] = x
    own = sys.modules[type(model).__module__].checkpoint_filter_fn(own, model)
    heads = model.pretrained_cfg['classifier']
    heads = tuple(f'{head}.' for head in ((heads,) if isinstance(heads, str) else heads))
    own = {f'model.{name}': x for name, x in own.items() if name not in dense.cut and not name.startswith(heads)}
    return {**own, **added}


def load_dense(dense: DenseModel | PlainMambaAdapter, state_dict: dict[str, Tensor]) -> list[str]:
    """Load the weights of an upstream classifier, detector or segmenter, or of `dense` itself.

    Args:
        dense: What to load into.
        state_dict: As of `dense_state_dict`.

    Returns:
        What `dense` adds to its model and the weights do not have, as a classifier's; it keeps its values.

    Raises:
        ValueError: If the model's own weights do not fit, or there are unexpected ones.
    """
    state_dict = dense_state_dict(state_dict, dense)
    missing = [name for name in dense.state_dict() if name not in state_dict and not name.startswith('model.')]
    check_fit(state_dict, dense, missing)
    dense.load_state_dict(state_dict, strict=False)
    return missing
