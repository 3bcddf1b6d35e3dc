"""How the families are built through timm, from its public names alone (1.0.22 to current)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from ._checkpoint import check_fit, checkpoint_globals, load_checkpoint, unwrap

FilterFn = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


def cfg(**kwargs: Any) -> dict[str, Any]:
    """A pretrained configuration for ImageNet-1k at 224: bicubic resize to 256, central crop; `kwargs` replace entries.

    `top1` is the accuracy that the authors report; it becomes a note that says so.
    """
    top1 = kwargs.pop('top1', None)
    if top1 is not None:
        kwargs['notes'] = (f'top-1 {top1} % on ImageNet-1k, reported by the authors', *kwargs.get('notes', ()))
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        **kwargs,
    }


def build(
    cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: FilterFn,
    levels: int | Sequence[int] = (0, 1, 2, 3),
    container: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`build_model_with_cfg` with our reading of local files and our check that weights fit.

    Features come by `forward_intermediates` and thus as NCHW maps, whatever the layout inside.

    Args:
        cls: Model class.
        variant: Registered name.
        pretrained: Load the weights that the configuration points to; `file=` in it is read by `load_checkpoint`.
        filter_fn: Upstream names to ours.
        levels: Default `out_indices` of `features_only`.
        container: Where checkpoints keep the weights that upstream evaluates, if not where `unwrap` looks first.
        **kwargs: As given to `timm.create_model`.

    Raises:
        ValueError: If the weights can't be read or do not fit.
    """
    pretrained_cfg = resolve_pretrained_cfg(
        variant, kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None)
    )
    file, source = pretrained_cfg.file, pretrained_cfg.source
    if pretrained and file:
        # timm would take averaged weights first, whatever upstream evaluates; and before torch 2.13 it can't read the
        # safetensors of a folder
        state_dict = load_checkpoint(weights_file(file) if source == 'local-dir' else file, container)
        pretrained_cfg = dataclasses.replace(pretrained_cfg, file=None, source='', state_dict=state_dict)
    features_only = kwargs.get('features_only', False)

    def checked_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        state_dict = filter_fn(unwrap(state_dict, container=container), model)
        optional = []
        if features_only or model.num_classes != pretrained_cfg.num_classes:
            heads = pretrained_cfg.classifier  # timm leaves these out
            optional += [f'{head}.' for head in ((heads,) if isinstance(heads, str) else heads)]
        if features_only:
            optional.append('norm.')  # not read unless norm=True
        if model.in_chans != pretrained_cfg.input_size[0]:
            optional.append(f'{pretrained_cfg.first_conv}.weight')  # timm adapts it
        check_fit(state_dict, model, optional)
        return state_dict

    with checkpoint_globals():  # for what timm itself downloads
        model = build_model_with_cfg(
            cls,
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg.to_dict(),
            pretrained_filter_fn=checked_filter,
            feature_cfg={'out_indices': levels, 'feature_cls': 'getter'},
            **kwargs,
        )
    if pretrained and file:  # do not keep the weights twice
        model.pretrained_cfg.pop('state_dict')
        model.pretrained_cfg.update(file=file, source=source)
    return model


def weights_file(folder: str) -> Path:
    """The weights in a folder that `save_for_hf` wrote, or that lies like one on the Hub.

    Raises:
        ValueError: If there are none.
    """
    names = ('model.safetensors', 'pytorch_model.bin')
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(f'{folder} holds no weights; looked for {" and ".join(names)}')


def take_indices(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Resolve `indices` of `forward_intermediates`.

    Args:
        count: How many levels there are.
        indices: Which are wanted: the last n if an int, all if None; negative ones count from the end.

    Returns:
        The levels and the highest of them.

    Raises:
        ValueError: If a level does not exist.
    """
    if indices is None:
        indices = count
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(f'the last {indices} levels are asked for; allowed are 1..{count}')
        indices = range(count - indices, count)
    for index in indices:
        if not -count <= index < count:
            raise ValueError(f'level {index} is asked for; allowed are {-count}..{count - 1}')
    taken = [index % count for index in indices]
    return taken, max(taken)


def record_args(model: nn.Module, **kwargs: Any) -> None:
    """Note constructor arguments that changed after construction, so that timm's `save_for_hf` stores them.

    timm before 1.0.29 does not look: there, pass `model_args` to `save_for_hf`.
    """
    model._model_args = {**getattr(model, '_model_args', {}), **kwargs}
    if 'img_size' in kwargs:
        model._traits = {**getattr(model, '_traits', {}), 'img_size': kwargs['img_size']}
