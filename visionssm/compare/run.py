"""A comparison from its request to its folder; killed at any moment, it goes on with what is missing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from visionssm.catalog.configs import find_config
from visionssm.catalog.machine import check_device, processor
from visionssm.extras import check_extra
from visionssm.files import check_extendable, read_object, write_whole
from visionssm.train.data import STREAMS, NoSplitError, channels_of, open_source
from visionssm.train.log import check_extras
from visionssm.train.model import create_model
from visionssm.train.recipe import Recipe
from visionssm.train.run import decisive
from visionssm.version import __version__
from visionssm.weights.download import sha256
from visionssm.weights.locate import locate

from . import report
from .accuracy import METHODS, probed_accuracy, remove_checkpoints, trained_accuracy
from .candidates import Candidate, make_candidates
from .cost import describe, measure

_HELD_OUT = 0.2  # of a folder without images for the evaluation
# of data of one's own, unless a recipe is given; a starting point
_KEYS = {'batch_size': 64, 'lr': 5e-4, 'epochs': 10, 'clip_grad': 1.0}


class Comparison(NamedTuple):
    """What came out.

    Attributes:
        rows: One per model, in the order of the request.
        notes: How it was measured.
    """

    rows: list[report.Row]
    notes: list[str]


def compare(
    models: Sequence[str],
    data: str,
    output: str | Path,
    *,
    scans: Sequence[Any] = (),
    probe: str | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    initial: str | None = None,
    img_size: int | None = None,
    batch_size: int | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
    speed_batch: int = 8,
    rounds: int = 9,
    device: str = 'cpu',
    say: Callable[[str], None] = print,
) -> Comparison:
    """Compare models or scan orders on one data set, and write a table and a picture to a folder.

    Every result is written as soon as it is there, and trainings keep checkpoints: the same call goes on where a killed
    one stopped. More models and seeds may be asked for later; anything else needs another folder.

    Args:
        models: Registered names of ours or timm's, or `local-dir:FOLDER`; `NAME@KEY=VALUE` sets a key of recipes or an
            argument of the model, such as `vmamba_nano@scan=hilbert` or `resnet18@initial=pretrained`.
        data: Folder with `train/` and `val/`, folder of class folders (a fifth of every class is held out, the same for
            all seeds), 'digits', or `hfds/NAME`.
        output: Folder for `compare.md`, `.csv`, `.json`, `.png` and the single runs.
        scans: Orders with which every model that has one is compared.
        probe: 'linear' or 'knn': a classifier on frozen features instead of training.
        epochs: Of training; None: the recipe's.
        seeds: Runs per model, with seeds from 0. Features of given weights do not depend on it: one run.
        initial: Weights to start from: 'pretrained', a file or a folder; 'none'. None: pretrained for a probe, none for
            training.
        img_size: Side of all images; None: every model's own.
        batch_size: Of training; None: the recipe's.
        config: Recipe that all share: a file, or a name in configs/train; None: 'digits' for the digits, else AdamW at
            5e-4, batches of 64, 10 epochs.
        overrides: `key=value` of that recipe.
        speed_batch: Images at once when speed and memory are measured.
        rounds: Timed runs of every model, which take turns.
        device: Where to run.
        say: Takes lines of text for the user.

    Raises:
        ValueError: If a model, the data or a setting is wrong, or `output` holds another comparison.
        OSError: If something can't be read or written.
        MissingExtraError: If a package is missing.
    """
    if probe not in (None, 'linear', 'knn'):
        raise ValueError(f'probe is {probe!r}; allowed are linear, knn')
    if probe and epochs:
        raise ValueError('a probe trains no epochs; leave epochs or probe out')
    if not models:
        raise ValueError('no model to compare; give one or more')
    for name, value in {'seeds': seeds, 'speed_batch': speed_batch, 'rounds': rounds}.items():
        if value < 1:
            raise ValueError(f'{name} is {value}; allowed are integers from 1')
    output, target = Path(output), check_device(device)
    initial = initial or ('pretrained' if probe else None)
    keys = {'data': data, 'epochs': epochs, 'img_size': img_size, 'batch_size': batch_size}
    keys['initial'] = None if initial == 'none' else initial
    if config is None and data != 'digits':
        keys = {**_KEYS, **{key: value for key, value in keys.items() if value is not None}}
        for key in {override.partition('=')[0] for override in overrides} & set(_KEYS):
            del keys[key]
    path = find_config(config or 'digits') if config or data == 'digits' else None
    candidates = make_candidates(models, scans, path, overrides, **keys)
    check_extra('comparing', 'train', 'matplotlib', 'tqdm', 'sklearn')
    check_extras(candidates[0].recipe)
    candidates, classes, found = _open_data(candidates)
    method = probe or 'train'
    costs = {candidate.name: describe(candidate, classes) for candidate in candidates}
    shared = {'method': method, 'data': found, 'recipe': _shared(candidates[0].recipe, path, overrides, keys)}
    weights = {candidate.name: _weights(candidate.recipe) for candidate in candidates}
    for recipe in (candidate.recipe for candidate in candidates):  # what would stop the first run, before there is any
        if recipe.batch_size > found['train']:
            raise ValueError(f'batch_size is {recipe.batch_size}; there are {found["train"]} training images')
        if recipe.initial not in (None, 'pretrained'):
            create_model(recipe, channels_of(recipe), classes)
    _claim(output, shared)
    speeds = _speeds(output, candidates, costs, classes, speed_batch, rounds, target, probe is None, say)
    rows, versions = [], set()
    for candidate in candidates:
        count = 1 if probe and candidate.recipe.initial else seeds
        results = [
            _result(output, candidate, seed, method, weights[candidate.name], device, say) for seed in range(count)
        ]
        versions |= {tuple(result['versions'].values()) for result in results}
        cost = costs[candidate.name]
        rows.append(
            report.Row(
                candidate.name,
                tuple(cost['input']),
                cost['parameters'],
                cost['macs'],
                speeds[candidate.name]['images_per_second'],
                speeds[candidate.name]['memory_mib'],
                speeds[candidate.name].get('training_memory_mib'),
                tuple(result['accuracy'] for result in results),
                tuple(result['seconds'] for result in results if 'seconds' in result),
            )
        )
    recipe = candidates[0].recipe
    notes = [_about_accuracy(recipe, method, found, seeds), _about_speed(speed_batch, rounds, target)]
    if len(versions) > 1:
        notes.append(f'Runs of several versions (visionssm, torch, timm): {sorted(versions)}.')
    report.write(output, rows, notes, shared)
    return Comparison(rows, notes)


def _open_data(candidates: list[Candidate]) -> tuple[list[Candidate], int, dict[str, Any]]:
    """The candidates, with a share of the images held out if there are no others; classes; what the data are."""
    recipe = candidates[0].recipe
    if recipe.data.startswith(STREAMS):
        raise ValueError(f'data {recipe.data!r} is a stream; give a folder, digits or hfds/NAME')
    if not recipe.evaluated:
        raise ValueError('val_split is none, so there is no accuracy to compare; set val_split or held_out')
    channels = channels_of(recipe)
    train = open_source(recipe, recipe.train_split, True, channels)
    try:
        held_out = open_source(recipe, recipe.val_split, False, channels, train.classes)
    except NoSplitError:
        candidates = [replace(c, recipe=replace(c.recipe, held_out=_HELD_OUT)) for c in candidates]
        recipe = candidates[0].recipe
        train, held_out = (open_source(recipe, recipe.train_split, training, channels) for training in (True, False))
    if not train.classes:
        raise ValueError(f'data {recipe.data!r} does not name its classes')
    digest = hashlib.sha256(json.dumps([len(train), len(held_out), train.classes]).encode())
    if not recipe.data.startswith('hfds/'):
        digest.update('\n'.join(x.name(i) for x in (train, held_out) for i in range(len(x))).encode())
    found = {'name': recipe.data, 'train': len(train), 'evaluated': len(held_out), 'sha256': digest.hexdigest()}
    return candidates, len(train.classes), found


def _shared(recipe: Recipe, path: Path | None, overrides: Sequence[str], keys: dict[str, Any]) -> dict[str, Any]:
    """What all sides of a comparison share: the recipe without what belongs to one of them."""
    plain = make_candidates(['resnet18'], [], path, overrides, **keys)[0].recipe
    shared = decisive(replace(plain, held_out=recipe.held_out))
    return {key: value for key, value in shared.items() if key not in ('model', 'model_args', 'seed')}


def _claim(output: Path, shared: dict[str, Any]) -> None:
    """Note the settings of the comparison that a folder holds; they must be those of an earlier one."""
    file = output / 'settings.json'
    check_extendable(output, [file.name], 'comparison')
    if not file.exists():
        write_whole(file, json.dumps(shared, indent=1) + '\n')
        return
    before, now = _flattened(read_object(file)), _flattened(json.loads(json.dumps(shared)))
    differ = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differ:
        texts = ', '.join(f'{key} ({before.get(key)!r}, now {now.get(key)!r})' for key in differ)
        raise ValueError(f'{output} holds a comparison with other settings: {texts}; give another folder')


def _flattened(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name if key == 'recipe' else f'{key} {name}'.strip(): value
        for key, part in settings.items()
        for name, value in (part.items() if isinstance(part, dict) else [('', part)])
    }


def _speeds(
    output: Path,
    candidates: list[Candidate],
    costs: dict[str, dict[str, Any]],
    classes: int,
    batch: int,
    rounds: int,
    device: torch.device,
    training: bool,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Speed and memory; those of an earlier call if it measured these models in this way on this machine."""
    settings = {
        'models': {name: cost['input'] for name, cost in costs.items()},
        'batch': batch,
        'rounds': rounds,
        'threads': torch.get_num_threads(),
        'device': processor(device),
        'versions': _versions(),
    }
    file = output / 'speed.json'
    if file.exists() and (stored := read_object(file)).get('settings') == settings:
        measured = stored.get('measured')
        if not isinstance(measured, dict) or not all(isinstance(measured.get(name), dict) for name in costs):
            raise ValueError(f'{file} is not as it was written; give another folder')
        return measured
    say(f'speed and memory of {len(candidates)} models, {rounds} rounds in turn, batches of {batch}')
    sizes = {name: cost['input'] for name, cost in costs.items()}
    measured = measure(candidates, sizes, classes, batch, rounds, device, training)
    write_whole(file, json.dumps({'settings': settings, 'measured': measured}, indent=1) + '\n')
    return measured


def _result(
    output: Path, candidate: Candidate, seed: int, method: str, weights: str, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """The result of one run, from its file if it is done."""
    recipe = replace(candidate.recipe, seed=seed)
    slug = re.sub(r'[^\w.+=-]+', '_', candidate.name)[-80:]
    folder = output / 'runs' / f'{slug}-{hashlib.sha256(candidate.name.encode()).hexdigest()[:6]}-seed{seed}'
    file = folder / 'result.json'
    settings = json.loads(json.dumps({'recipe': decisive(recipe), 'method': method, 'weights': weights}))
    if file.exists():
        result = read_object(file)
        if result.get('settings') != settings:
            raise ValueError(f'{file} is of other settings or weights of {candidate.name}; give another folder')
        accuracy = result.get('accuracy', '')
        if not isinstance(result.get('versions'), dict) or not isinstance(accuracy, int | float | None):
            raise ValueError(f'{file} is not as it was written; give another folder')
        remove_checkpoints(folder)
        return result
    told = partial(_tell, say, f'{candidate.name}, seed {seed}')
    if method == 'train':
        result = trained_accuracy(recipe, folder, device, told)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        result = probed_accuracy(recipe, method, device, told)
    result |= {'versions': _versions(), 'settings': settings}
    write_whole(file, json.dumps(result, indent=1) + '\n')
    remove_checkpoints(folder)
    if result['accuracy'] is not None:
        told(f'accuracy {result["accuracy"]:.2%}')
    return result


def _tell(say: Callable[[str], None], who: str, line: str) -> None:
    say(f'{who}: {line}')


def _weights(recipe: Recipe) -> str:
    """Which weights a run begins with: the tag of published ones, the SHA-256 of a file."""
    if recipe.initial is None:
        return 'random'
    if recipe.initial == 'pretrained':
        config = timm.get_pretrained_cfg(recipe.model)
        if not config.has_weights:
            raise ValueError(f'{recipe.model} has no published weights; give initial: none, a file or a folder')
        return recipe.model if '.' in recipe.model or not config.tag else f'{recipe.model}.{config.tag}'
    path = Path(recipe.initial)
    if not path.exists():
        raise FileNotFoundError(f'no weights at {path}')
    return sha256(locate(path) if path.is_dir() else path)


def _versions() -> dict[str, str]:
    return {'visionssm': __version__, 'torch': torch.__version__, 'timm': timm.__version__}


def _about_accuracy(recipe: Recipe, method: str, found: dict[str, Any], seeds: int) -> str:
    start = {None: 'new weights', 'pretrained': 'published weights'}.get(recipe.initial, recipe.initial)
    how = (
        f'{METHODS[method]} for {recipe.epochs} epoch{"s" if recipe.epochs > 1 else ""}'
        if method == 'train'
        else METHODS[method]
    )
    spread = f', mean and standard deviation of {seeds} seeds' if seeds > 1 else ', one run'
    if method != 'train' and recipe.initial:
        spread = ''
    counts = f'{found["evaluated"]} images of {found["name"]} ({recipe.evaluated}); {found["train"]} for training'
    return f'Accuracy on {counts}; {how}, from {start}{spread}.'


def _about_speed(batch: int, rounds: int, device: torch.device) -> str:
    threads = torch.get_num_threads()
    where = (
        f'{processor(device)}, {threads} thread{"s" if threads > 1 else ""}'
        if device.type == 'cpu'
        else processor(device)
    )
    return (
        f'Images/s: inference in fp32, batches of {batch}, median of {rounds} rounds in which the models took turns, '
        f'on {where}. Memory: peak of what torch allocates for such a batch, beyond weights and images; in training '
        'with gradients. Multiply-adds: for one image, as the papers count them.'
    )
