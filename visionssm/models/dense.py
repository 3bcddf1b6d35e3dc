"""What detectors and segmenters take from a model: maps of some levels, through norms of their own."""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from .builder import checkpoint_filter, take_indices


class DenseModel(nn.Module):
    """A model cut down to the maps of some levels; later layers, the final norm and the head are removed.

    Args:
        model: Model with timm's `forward_intermediates` and `feature_info`. It is changed.
        out_indices: Stages (pyramids) or blocks (models of one resolution) whose maps are wanted, rising; negative
            ones count from the end.
        out_norm: Give every map a LayerNorm over channels, `outnorm{index}`, with the epsilon that the model asks for
            or that of its final norm. Levels whose maps are normed already (`norm` in `feature_info`: GroupMamba's
            first three) get none.
        out_channels: Project every map to as many channels before its norm, by `outproj{index}`; None: do not.

    Attributes:
        removed: Names of the weights that were cut off the model.
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
        taken = take_indices(len(model.feature_info), out_indices)[0] if out_indices else []
        if not taken or taken != sorted(set(taken)):
            raise ValueError(f'out_indices is {tuple(out_indices)!r}; allowed are rising ones, at least one')
        levels = [model.feature_info[i] for i in taken]
        normed = [level['norm'] for level in levels if 'norm' in level]
        like = model.get_submodule(normed[0]) if normed else getattr(model, 'norm', None)
        eps = getattr(model, 'out_norm_eps', None) or getattr(like, 'eps', 1e-5)
        before = set(model.state_dict())
        model.prune_intermediate_layers(taken, prune_norm=True, prune_head=True)
        self.model = model
        self.removed = before - set(model.state_dict())
        self.out_indices = tuple(taken)
        self.channels = [out_channels or level['num_chs'] for level in levels]
        self.reductions = [level['reduction'] for level in levels]
        self.out_norm = out_norm
        self.out_channels = out_channels
        for i, level, width in zip(taken, levels, self.channels, strict=True):
            if out_channels is not None:
                self.add_module(f'outproj{i}', nn.Linear(level['num_chs'], width))
            if out_norm:
                has_one = 'norm' in level and out_channels is None
                self.add_module(f'outnorm{i}', nn.Identity() if has_one else nn.LayerNorm(width, eps=eps))

    @property
    def added(self) -> list[str]:
        """Names of the weights that a classifier does not have."""
        own = f'model.{getattr(self.model, "inner", "")}'
        return [name for name in self.state_dict() if not name.startswith(own)]

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


def dense_state_dict(state_dict: dict[str, Tensor], dense: DenseModel) -> dict[str, Tensor]:
    """Weights under the names of `dense`, one tensor for one; what was cut off the model keeps its place.

    Args:
        state_dict: Of an upstream classifier or of the backbone of an upstream detector or segmenter (without
            `backbone.`), or of `dense` itself.
        dense: What they are for.
    """
    if any(name.startswith('model.') for name in state_dict):
        return state_dict
    model, own, norms = dense.model, {}, {}
    for name, x in state_dict.items():
        ours = _out_norm(name, dense)
        if ours is None:
            own[name] = x
        else:
            norms[ours] = x
    own = checkpoint_filter(type(model))(own, model)
    return {**{f'model.{name}': x for name, x in own.items()}, **norms}


def _out_norm(name: str, dense: DenseModel) -> str | None:
    """Our name of an upstream output norm or projection; None for all else."""
    match = re.fullmatch(r'(?:outnorm|norm_layer)(\d+)\.(\w+)', name)  # VMamba, MSVMamba; PlainMamba
    if match:
        return f'outnorm{match[1]}.{match[2]}'
    match = re.fullmatch(getattr(dense.model, 'final_norm', '$^'), name)
    last = len(dense.model.feature_info) - 1
    if match and dense.out_norm and last in dense.out_indices:
        return f'outnorm{last}.{match[1]}'
    match = re.fullmatch(r'out(norm|_map)_(\d+)\.(\w+)', name)  # LBVim counts the maps wanted
    if match and int(match[2]) < len(dense.out_indices):
        kind = 'outnorm' if match[1] == 'norm' else 'outproj'
        return f'{kind}{dense.out_indices[int(match[2])]}.{match[3]}'
    return None
