"""What timm's registry holds of this package, for the command line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from itertools import groupby
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, list_models, model_entrypoint
from torch import nn

from visionssm.weights.published import family_of, find_published, model_facts
from visionssm.weights.records import Model, Published, license_text

from .macs import count_macs


def model_names(pattern: str = '', tags: bool = False) -> list[str]:
    """Names of the models of all families, without the tiny `test_*` ones unless `pattern` asks for them.

    Args:
        pattern: Shell-style wildcards; '': all.
        tags: One name per set of weights, `model.tag`, instead of one per model.
    """
    exclude = [] if pattern.startswith('test_') else ['test_*']
    names = list_models(pattern, exclude_filters=exclude, include_tags=tags)
    return [name for name in names if _recorded(name.partition('.')[0])]


def _recorded(model: str) -> bool:
    """Whether a registered name belongs to a family; timm may have added models to a borrowed one."""
    family = family_of(model)
    if family is None:
        return False
    return model in family.models or (family.borrowed and model_entrypoint(model).__module__.endswith(family.key))


def check_model(name: str) -> PretrainedCfg:
    """The configuration of the model `name`, with or without a tag.

    Raises:
        ValueError: If there is no such model, or it has no such tag; the message has the closest names.
    """
    model, _, tag = name.partition('.')
    models = [*model_names(), *model_names('test_*')]
    if model not in models:
        starting = [other for other in models if model and other.startswith(model)]
        close = starting[:3] or difflib.get_close_matches(model, models, 3)
        close = close or [other for other in models if model[:4] in other][:3]
        hint = f'; closest are {", ".join(close)}' if close else ''
        raise ValueError(f'unknown model {name!r}{hint}; `visionssm list` shows all')
    known = [other for other in model_names(f'{model}*', tags=True) if other.partition('.')[0] == model]
    if tag and name not in known:
        raise ValueError(f'unknown weights {name!r}; {model} has {", ".join(known) if "." in known[0] else "none"}')
    return get_pretrained_cfg(name, allow_unregistered=False)


def is_ours(name: str) -> bool:
    """Whether a registered model is made by this package, not by timm."""
    return model_entrypoint(name).__module__.startswith('visionssm.')


def sketch(name: str, **kwargs: Any) -> nn.Module:
    """The model without memory for its weights (on the meta device)."""
    with torch.device('meta'):
        return timm.create_model(name, **kwargs)


def takes_argument(model: nn.Module, argument: str) -> bool:
    """Whether the constructor of `model` has this argument, itself or in a base that it passes others on to."""
    for cls in type(model).__mro__:
        parameters = inspect.signature(cls.__init__).parameters
        if argument in parameters:
            return True
        if not any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
            return False
    return False


def tag_record(config: PretrainedCfg) -> Published:
    """What is known of the weights of a tag: our record, or one made from timm's configuration."""
    if config.tag and (file := find_published(f'{config.architecture}.{config.tag}')):
        return file
    facts = model_facts(config.architecture)
    top1 = facts.top1 if facts and config.tag == 'in1k' else None
    repo, _, revision = (config.hf_hub_id or '').partition('@')
    return Published(
        model=config.architecture,
        tag=config.tag or '',
        metrics={} if top1 is None else {'top-1': top1},
        license=config.license or 'unknown',
        origin_url=config.origin_url or '',
        repo=repo,
        revision=revision,
        filename=config.hf_hub_filename or '',
        url=config.url or '',
        notes=tuple(config.notes or ()),
        borrowed=True,
    )


def list_rows(pattern: str = '', cost: bool = False) -> list[dict[str, str]]:
    """One row of text per model (with its default weights), for a table.

    Args:
        pattern: Shell-style wildcards, or a part of the name; '': all.
        cost: Also multiply-adds, and the authors' figures beside the counts.

    Raises:
        ValueError: If no model matches.
    """
    names = model_names(pattern)
    if not names and pattern and not set('*?[') & set(pattern):
        names = model_names(f'*{pattern}*')
    if not names:
        raise ValueError(f'no model matches {pattern!r}; `visionssm list` without a pattern shows all')
    rows = []
    for name in names:
        config = get_pretrained_cfg(name)
        top1 = tag_record(config).metrics.get('top-1')
        facts = model_facts(name) or Model(*model_cost(name))
        row = {
            'model': f'{name}.{config.tag}' if config.tag else name,
            'params (M)': f'{facts.params / 1e6:.1f}',
        }
        if cost:
            row |= _costs(facts)
        row |= {
            'input': 'x'.join(map(str, config.input_size)),
            'top-1 reported': '' if top1 is None else f'{top1:.1f}',
            'licence': license_text(config.license or 'unknown') if config.tag or config.has_weights else '',
            'weights': 'yes' if config.has_weights else 'by hand' if config.tag else 'no',
        }
        if cost:
            row['remark'] = facts.remark
        rows.append(row)
    return rows


def describe(name: str) -> list[tuple[str, str]]:
    """What `visionssm info` says about a model, as (heading, text) pairs.

    Raises:
        ValueError: If there is no such model.
    """
    config = check_model(name)
    model = sketch(name)
    size = 'x'.join(map(str, config.input_size))
    resize = 'resize' if config.crop_mode == 'center' else f'resize ({config.crop_mode})'
    lines = [
        ('model', name),
        ('class', f'{type(model).__module__}.{type(model).__qualname__}'),
        ('parameters', f'{_count(model) / 1e6:.2f} M'),
        ('input', f'{size}, {"this size only" if config.fixed_input_size else "other sizes too"}'),
        (
            'preprocessing',
            f'{config.interpolation} {resize}, crop {config.crop_pct:g}, mean {config.mean}, std {config.std}',
        ),
        ('classes', str(config.num_classes)),
    ]
    if hasattr(model, 'scan'):
        lines.append(('scan', f'{model.scan}, {model.scan_directions} directions'))
    lines += [('features', text) for text in _levels(model.feature_info)]
    if config.paper_name:
        lines.append(('paper', f'{config.paper_name}, {config.paper_ids}'))
    if config.origin_url:
        lines.append(('origin', config.origin_url))
    base = name.partition('.')[0]
    for tagged in model_names(f'{base}*', tags=True):
        if tagged.partition('.')[0] == base:
            lines.append(('weights', _weights(tagged, get_pretrained_cfg(tagged))))
    return lines


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@cache
def model_cost(name: str) -> tuple[int, int]:
    """Parameters of a registered model, and multiply-adds at its own input size, counted by building it."""
    model = sketch(name).eval()
    return _count(model), round(count_macs(model, get_pretrained_cfg(name).input_size))


def _costs(facts: Model) -> dict[str, str]:
    """Multiply-adds beside the authors' figures; a * marks a figure that disagrees with the count."""

    def marked(counted: float, printed: str) -> str:
        return f'{printed}*' if differs(counted, printed) else printed

    return {
        'params reported (M)': marked(facts.params / 1e6, facts.reported_params),
        'GMACs': f'{facts.macs / 1e9:.2f}',
        'GFLOPs reported': marked(facts.macs / 1e9, facts.reported_gflops),
    }


def differs(counted: float, reported: str) -> bool:
    """Whether a count neither rounds to the printed figure nor lies within 1 % of it; '' never disagrees."""
    if not reported:
        return False
    digits = len(reported.partition('.')[2])
    return f'{counted:.{digits}f}' != reported and abs(counted / float(reported) - 1) > 0.01


def _levels(feature_info: list[Mapping[str, Any]]) -> list[str]:
    """One line per level; equal neighbours share one."""
    lines, first = [], 0
    for (channels, reduction), group in groupby(feature_info, lambda level: (level['num_chs'], level['reduction'])):
        last = first + len(list(group)) - 1
        level = f'level {first}' if first == last else f'levels {first} to {last}'
        lines.append(f'{level}: {channels} channels at 1/{reduction}')
        first = last + 1
    return lines


def _weights(name: str, config: PretrainedCfg) -> str:
    if not (config.has_weights or config.tag):
        return f'{name}: none published'
    file = tag_record(config)
    where = config.file or 'no address' if file.by_hand else file.where
    return '; '.join([f'{name}: {where}, licence {license_text(file.license)}', *file.remarks])
