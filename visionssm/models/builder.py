"""How the families are built through timm, from its public names alone (1.0.22 to current)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, resolve_pretrained_cfg
from torch import Tensor, nn

from visionssm.weights.checkpoint import backbone_weights, check_fit
from visionssm.weights.locate import read
from visionssm.weights.published import FAMILIES
from visionssm.weights.quantized import install
from visionssm.weights.records import Family

from .bounds import check_size

FilterFn = Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]


def family_cfgs(family: str | Family, differing: Mapping[str, Mapping[str, Any]], **common: Any) -> dict[str, Any]:
    """Timm's configurations of a family: one of each published classifier, and of each model without one.

    They are for ImageNet-1k at 224 (bicubic resize to 256, central crop) unless said otherwise. Addresses, licences,
    paper and notes are those of the record.

    Args:
        family: Its record, or the key of it.
        differing: Entries of some configurations alone, by `model` or `model.tag`.
        **common: Entries of all.

    Raises:
        ValueError: If `differing` names a model or a tag that does not exist.
    """
    family = FAMILIES[family] if isinstance(family, str) else family
    cfgs = {}
    for model in family.models:
        for file in [file for file in family.files if file.model == model and file.tag] or [None]:
            cfgs[file.name if file else model] = {
                'num_classes': 1000,
                'input_size': (3, 224, 224),
                'crop_pct': 0.875,
                'interpolation': 'bicubic',
                'mean': IMAGENET_DEFAULT_MEAN,
                'std': IMAGENET_DEFAULT_STD,
                'license': file.license if file else family.license,
                'origin_url': family.repository,
                'paper_ids': f'arXiv:{family.arxiv}',
                'paper_name': family.paper,
                **common,
                **differing.get(model, {}),
            }
            if file:
                place = {'hf_hub_id': file.hf_hub_id, 'hf_hub_filename': file.hf_hub_filename, 'url': file.url or None}
                cfgs[file.name] |= {**place, 'notes': file.remarks, **differing.get(file.name, {})}
    if unknown := differing.keys() - cfgs.keys() - family.models.keys():
        raise ValueError(f'{family.title} has no {", ".join(sorted(unknown))}; it has {", ".join(cfgs)}')
    return generate_default_cfgs(cfgs)


def build(
    cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    levels: int | Sequence[int] = (0, 1, 2, 3),
    sized: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """`build_model_with_cfg` with our way to weights: fetched and verified, read without running anything, checked.

    Features come from `forward_intermediates`, and so as NCHW maps, whatever the layout inside.

    Args:
        cls: Model class, with `checkpoint_filter_fn(state_dict, model)`: upstream names to ours.
        variant: Registered name.
        pretrained: Load the weights that the configuration points to.
        levels: Default `out_indices` of `features_only`.
        sized: Take `img_size` from the configuration unless it is given, also if other sizes fit.
        **kwargs: As given to `timm.create_model`.

    Raises:
        ValueError: If there are no weights, or they can't be read or do not fit.
        WeightsError: If they can't be downloaded, or have changed since they were published.
    """
    pretrained_cfg = resolve_pretrained_cfg(
        variant, kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None)
    )
    cache_dir = kwargs.pop('cache_dir', None)
    if sized:
        kwargs.setdefault('img_size', pretrained_cfg.input_size[-2:])
    config = dataclasses.replace(pretrained_cfg, state_dict=None).to_dict()
    source = {name: config[name] for name in _SOURCE if name in config}
    if pretrained:
        weights = read(pretrained_cfg, variant, cache_dir)
        # timm downloads with pickles unrestricted (before 1.0.29), takes averaged weights first whatever upstream
        # evaluates, and copies state dicts: so it gets a stand-in, and the filter below returns the weights
        config = {name: value for name, value in config.items() if name not in source}
        config['state_dict'] = {'': torch.empty(0)}
    features_only = kwargs.get('features_only', False)
    feature_cfg = {'out_indices': levels, 'feature_cls': 'getter'}

    def sketched() -> nn.Module:
        args = {**kwargs, **({'device': 'meta'} if kwargs.get('device') is not None else {})}
        return build_model_with_cfg(cls, variant, False, pretrained_cfg={**config}, feature_cfg={**feature_cfg}, **args)

    held = sum(x.numel() for x in weights.values()) if pretrained else 0
    check_size(variant, sketched, kwargs, pretrained_cfg.source in ('local-dir', 'hf-hub'), held)

    def checked_filter(_: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        model.pretrained_cfg.pop('state_dict', None)
        model.pretrained_cfg.update(source)
        own = backbone_weights(weights)
        state_dict = cls.checkpoint_filter_fn(own, model)
        optional = {}
        if features_only or model.num_classes != pretrained_cfg.num_classes:
            heads = pretrained_cfg.classifier  # timm leaves these out
            meaning = 'features have no use for it' if features_only else f'new for {model.num_classes} classes'
            for head in (heads,) if isinstance(heads, str) else heads:
                optional[f'{head}.'] = f'the classifier, {meaning}'
        if features_only:
            optional['norm.'] = 'not read unless norm=True'
        elif own is not weights and model.num_classes == 0:
            optional['norm.'] = 'detectors and segmenters have none; stays as it starts'
        if model.in_chans != pretrained_cfg.input_size[0]:
            optional[f'{pretrained_cfg.first_conv}.weight'] = f'adapted to {model.in_chans} channels'  # by timm
        install(model, state_dict, optional)
        check_fit(state_dict, model, optional)
        return state_dict

    return build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_cfg=config,
        pretrained_filter_fn=checked_filter,
        feature_cfg=feature_cfg,
        **kwargs,
    )


_SOURCE = ('file', 'source', 'hf_hub_id', 'hf_hub_filename', 'url')


def checkpoint_filter(cls: type[nn.Module]) -> FilterFn:
    """What turns upstream's names into those of a model class: its `checkpoint_filter_fn`, which subclasses inherit.

    timm's models have a function of that name beside the class, if they need one.
    """
    if hasattr(cls, 'checkpoint_filter_fn'):
        return cls.checkpoint_filter_fn
    modules = (import_module(base.__module__) for base in cls.__mro__)
    beside = (module.checkpoint_filter_fn for module in modules if hasattr(module, 'checkpoint_filter_fn'))
    return next(beside, lambda state_dict, model: state_dict)


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
