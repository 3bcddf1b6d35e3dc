"""What is compared: `MODEL@KEY=VALUE`, each a recipe of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm

from visionssm.catalog.models import check_model, sketch, takes_argument
from visionssm.files import parse_yaml, read_object
from visionssm.train.recipe import Recipe, load_recipe

_FOLDER = 'local-dir:'
# of the comparison, not of one of its sides
_SHARED = {
    'source', 'reported', 'command', 'model', 'model_args', 'num_classes', 'data', 'data_dir', 'train_split',
    'val_split', 'held_out', 'seed',
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One side of a comparison.

    Attributes:
        name: As it was asked for.
        recipe: How it is trained, or which weights its features come from.
    """

    name: str
    recipe: Recipe


def make_candidates(
    models: Sequence[str], scans: Sequence[Any], config: Path | None, overrides: Sequence[str], **keys: Any
) -> list[Candidate]:
    """The sides of a comparison.

    Args:
        models: `NAME` or `local-dir:FOLDER`, with any number of `@KEY=VALUE`: a key of recipes, such as `lr`,
            `img_size` or `initial`, or an argument of the model, such as `scan`.
        scans: Scan orders, each of which every model that has one is compared with; none: the models' own.
        config: File of the recipe that they share; None: the defaults.
        overrides: `key=value` of that recipe.
        **keys: Values of that recipe, None ones left out.

    Raises:
        ValueError: If a model or a key is unknown, one stands twice, or no model has a scan order to choose.
    """
    if scans:
        models = list(_with_scans(models, scans))
    twice = sorted({name for name in models if models.count(name) > 1})
    if twice:
        raise ValueError(f'{", ".join(twice)} stands twice; give each once')
    return [Candidate(name, _recipe(name, config, overrides, keys)) for name in models]


def _with_scans(models: Sequence[str], scans: Sequence[Any]) -> Iterable[str]:
    fixed = 0
    for name in models:
        model = name.partition('@')[0]
        if not model.startswith(_FOLDER) and not timm.is_model(model):
            check_model(model)
        if model.startswith(_FOLDER) or '@scan=' in name or not takes_argument(sketch(model), 'scan'):
            fixed += 1
            yield name
        else:
            yield from (f'{name}@scan={scan}' for scan in scans)
    if fixed == len(models):
        raise ValueError(f'no scan order to choose: none of {", ".join(models)} takes one')


def _recipe(name: str, config: Path | None, overrides: Sequence[str], keys: dict[str, Any]) -> Recipe:
    model, *settings = name.split('@')
    args: dict[str, Any] = {}
    if model.startswith(_FOLDER):
        folder = model.removeprefix(_FOLDER)
        stored = read_object(Path(folder) / 'config.json')
        model, args = stored.get('architecture', ''), dict(stored.get('model_args') or {})
        keys = {**keys, 'initial': folder}
    own = []
    for setting in settings:
        key, equals, text = setting.partition('=')
        if not equals or not key.isidentifier():
            raise ValueError(
                f'{name!r} is not allowed; give MODEL or MODEL@KEY=VALUE, such as vmamba_nano@scan=hilbert'
            )
        if key in _SHARED:
            raise ValueError(f'{name!r} sets {key}, which all sides of a comparison share')
        if key in {field.name for field in fields(Recipe)}:
            own.append(setting)
        else:
            try:
                args[key] = parse_yaml(text)
            except ValueError as error:
                raise ValueError(f'{key}={text} is not a YAML value: {error}') from error
    recipe = load_recipe(config, [*overrides, *own], **{**keys, 'model': model})
    return replace(recipe, model_args={**recipe.model_args, **args})
