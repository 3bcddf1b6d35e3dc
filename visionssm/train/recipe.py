"""What to train and how, as one flat set of keys: a YAML file, with overrides from the command line."""

from __future__ import annotations

import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from visionssm.data import MOST_WORKERS
from visionssm.files import parse_yaml, read_small


def _key(default: Any, meaning: str, allowed: tuple = (), least: float | None = None, most: float | None = None) -> Any:
    """A key of a recipe: default, one line of help, and what values are allowed."""
    metadata = {'meaning': meaning, 'allowed': allowed, 'least': least, 'most': most}
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """A training run; `describe_fields` says what every key means.

    The batch size is that of one update over all processes, as papers state it, and `lr` is the rate for that batch:
    one recipe is the same training on one machine or eight. What does not fit in memory at once is accumulated
    (`micro_batch`).
    """

    # where the recipe is from; for readers
    source: str = _key('', 'paper, repository and commit that the values are from')
    reported: str = _key('', 'result that the authors report for it')
    command: str = _key('', 'exact command')

    model: str = _key('', 'registered name of this package or of timm')
    model_args: dict = _key({}, 'further arguments of the model, such as {scan: hilbert}')
    img_size: int | None = _key(None, "side of the training images; none: the model's own", least=1, most=1 << 15)
    num_classes: int | None = _key(
        None, "classes; none: those of the data, or the model's where they are not known", least=1
    )
    drop_path: float = _key(0.0, 'stochastic depth of the last block', least=0, most=1)
    initial: str | None = _key(
        None, "weights to start from: 'pretrained', a file, or a folder of a trained model; position embeddings fit"
    )
    freeze: str | None = _key(None, "'backbone': train the classifier alone (linear probing)", ('backbone',))
    grad_checkpointing: bool = _key(False, 'recompute blocks in the backward pass: less memory, more time')

    data: str = _key('', "folder with train/ and val/, 'digits', or timm's hfds/NAME, hfids/NAME, wds/NAME, tfds/NAME")
    data_dir: str | None = _key(None, 'where hfds/, wds/ and tfds/ data lie, or are kept')
    train_split: str = _key('train', 'split to train on')
    val_split: str | None = _key('validation', 'split to evaluate on; none: no evaluation')
    held_out: float | None = _key(
        None,
        'share of every class of train_split that is kept for evaluation instead of val_split; needs a folder or hfds/',
        least=0.01,
        most=0.99,
    )
    train_samples: int | None = _key(
        None, 'images per epoch, drawn anew for each; none: all of them; needed where a stream does not say', least=1
    )
    workers: int = _key(
        4, 'loader processes per training process; 0: load in the process itself', least=0, most=MOST_WORKERS
    )
    max_bad_images: int = _key(0, 'images that may be unreadable before the run stops; they are named', least=0)

    hflip: float = _key(0.5, 'probability of a horizontal flip', least=0, most=1)
    scale: list = _key([0.08, 1.0], 'area of the random crop over that of the image: [least, most]')
    ratio: list = _key([3 / 4, 4 / 3], 'width over height of the random crop: [least, most]')
    interpolation: str = _key(
        'random', 'of the random crop', ('random', 'bicubic', 'bilinear', 'lanczos', 'hamming', 'box', 'nearest')
    )
    color_jitter: float = _key(0.0, 'strength of colour jitter; no effect with auto_augment', least=0)
    auto_augment: str | None = _key(None, "timm's policy, such as rand-m9-mstd0.5-inc1")
    random_erase: float = _key(0.0, 'probability of erasing a box', least=0, most=1)
    repeated_aug: int = _key(1, 'times that an image comes in the same epoch, each augmented anew', least=1, most=1024)
    crop_pct: float | None = _key(None, "of the evaluation's central crop; none: the model's own", least=0.01, most=1)

    batch_size: int = _key(1024, 'images per update, over all processes', least=1)
    micro_batch: int | None = _key(None, 'images per process at a time; none: no accumulation', least=1)
    epochs: int = _key(300, 'passes over the training images', least=1)
    optimizer: str = _key('adamw', "timm's name")
    lr: float = _key(1e-3, 'highest learning rate, for batch_size', least=0)
    weight_decay: float = _key(0.05, 'not of biases, one-dimensional parameters, and what the model exempts', least=0)
    betas: list | None = _key(None, "of Adam and its kin; none: the optimiser's own")
    opt_eps: float | None = _key(None, "none: the optimiser's own", least=0)
    momentum: float = _key(0.9, 'of SGD and its kin', least=0, most=1)
    layer_decay: float | None = _key(None, 'learning rate of a layer over that of the next', least=0, most=1)
    clip_grad: float | None = _key(None, 'largest norm of the gradient; none: not clipped', least=0)
    schedule: str = _key('cosine', 'of the learning rate; flat: cosine with min_lr = lr', ('cosine', 'poly', 'tanh'))
    warmup_epochs: float = _key(
        5.0, 'epochs of linear warm-up, part of `epochs`; unless given, a fifth of runs of up to 5 epochs', least=0
    )
    warmup_lr: float = _key(1e-6, 'learning rate at the start of the warm-up', least=0)
    warmup_prefix: bool = _key(False, 'start the schedule after the warm-up instead of along with it')
    min_lr: float = _key(1e-5, 'learning rate at the end', least=0)

    smoothing: float = _key(0.1, 'label smoothing', least=0, most=1)
    mixup: float = _key(0.0, 'alpha of mixup; 0: none', least=0)
    cutmix: float = _key(0.0, 'alpha of CutMix; 0: none', least=0)
    mixup_prob: float = _key(1.0, 'probability that a batch is mixed', least=0, most=1)
    mixup_switch_prob: float = _key(0.5, 'probability of CutMix where both are on', least=0, most=1)
    mixup_off_epoch: int = _key(0, 'first epoch without mixing, counted from 0; 0: mix to the end', least=0)
    ema: float | None = _key(None, 'decay of the running average of the weights; none: no average', least=0, most=1)
    ema_warmup: bool = _key(False, 'let the decay rise to `ema`, for short runs')

    teacher: str | None = _key(None, 'distil from this timm model (pretrained), or local-dir:FOLDER')
    distillation: str = _key('soft', "hard: the teacher's top class as label; soft: its distribution", ('hard', 'soft'))
    base_weight: float = _key(1.0, "weight of the labels' loss in distillation", least=0)
    distillation_weight: float = _key(1.0, "weight of the teacher's loss", least=0)
    temperature: float = _key(1.0, 'of soft distillation', least=1e-3)
    mesa: float = _key(0.0, "weight of the loss against the average's own predictions (MESA); needs `ema`", least=0)
    mesa_start: int = _key(0, 'first epoch of MESA, counted from 0', least=0)
    shuffle_layers: float = _key(
        0.0, 'layer-wise shuffle (ShuffleMamba): probability in the last block, linear from 0', least=0, most=1
    )

    precision: str = _key(
        'auto', 'auto: bf16 where the hardware has it, fp32 elsewhere', ('auto', 'bf16', 'fp16', 'fp32')
    )
    compile: bool = _key(False, 'torch.compile')
    parallel: str = _key('ddp', 'over several processes', ('ddp', 'fsdp'))
    on_non_finite: str = _key(
        'stop', 'if the loss or its gradient is infinite or NaN; skip: omit that update and count it', ('stop', 'skip')
    )
    seed: int = _key(0, 'of weights, order and augmentation', least=0)

    checkpoint_steps: int | None = _key(None, 'updates between checkpoints, beside those at the end of epochs', least=1)
    keep_last: int = _key(2, 'checkpoints that are kept beside the best one', least=1)
    log_steps: int = _key(50, 'updates between lines of the log', least=1)
    tensorboard: bool = _key(False, 'write TensorBoard events, too')

    def __post_init__(self) -> None:
        types_ = typing.get_type_hints(type(self))
        for key in fields(self):
            object.__setattr__(self, key.name, _checked(key.name, getattr(self, key.name), types_[key.name]))
            _check_range(key.name, getattr(self, key.name), key.metadata)
        for name in ('scale', 'ratio', 'betas'):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and all(isinstance(x, int | float) for x in pair)):
                raise ValueError(f'{name} is {pair!r}; give two numbers')
        if self.mesa and self.ema is None:
            raise ValueError('mesa needs the average of the weights; set ema')
        if self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise ValueError(f'warmup_epochs is {self.warmup_epochs:g}, of {self.epochs} epochs; give fewer')

    @property
    def evaluated(self) -> str:
        """What the accuracy is measured on, for readers; '': it is not measured."""
        return f'the held-out {self.held_out:g} of {self.train_split}' if self.held_out else self.val_split or ''


def _checked(name: str, value: Any, wanted: Any) -> Any:
    """`value` as the type of the key; YAML reads 1e-3 as text and 1 as an integer."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif kind is list and isinstance(value, tuple):
        return list(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    also = ' or none' if type(None) in options else ''
    raise ValueError(f'{name} is {value!r}; give {_KINDS[kind]}{also}')


_LARGEST = (1 << 32) - 1  # integer, seeds included
_KINDS = {
    str: 'text',
    int: 'an integer',
    float: 'a number',
    bool: 'true or false',
    list: 'a list',
    dict: 'a mapping',
}


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    allowed, least, most = metadata['allowed'], metadata['least'], metadata['most']
    if allowed and value not in allowed:
        raise ValueError(f'{name} is {value!r}; allowed are {", ".join(allowed)}{_closest(value, allowed)}')
    if least is not None and most is None:
        most = _LARGEST if isinstance(value, int) else sys.float_info.max
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        limits = [] if least is None else [f'from {least:g}']
        limits += [] if most is None else [f'to {most}']
        raise ValueError(f'{name} is {value!r}; allowed are numbers {" ".join(limits)}')


def _closest(text: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(text, list(known), 3)
    return f'; did you mean {", ".join(close)}?' if close else ''


def load_recipe(file: str | Path | None = None, overrides: Iterable[str] = (), **keys: Any) -> Recipe:
    """A recipe from a YAML file, then `keys`, then `overrides`; later ones win.

    Args:
        file: YAML mapping; None: the defaults. Its key `base` names another one, relative to it, whose values it
            inherits; that one may have a base, too.
        overrides: `key=value`, the value as YAML.
        **keys: Values; None ones are left out.

    Raises:
        ValueError: If a key is unknown (the message has the closest ones), a value is not allowed, no model is given,
            a file is not a mapping, or bases form a circle.
        FileNotFoundError: If a file does not exist.
    """
    values = {} if file is None else _read(Path(file))
    values.update({key: value for key, value in keys.items() if value is not None})
    for override in overrides:
        key, equals, text = override.partition('=')
        if not equals:
            raise ValueError(f'{override!r} is not allowed; give key=value')
        _check_keys([key], 'to set')
        try:
            values[key] = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f'{key}={text} is not a YAML value: {error}') from error
    recipe = Recipe(**_with_short_warmup(values))
    for key in ('model', 'data'):
        if not getattr(recipe, key):
            raise ValueError(f'no {key} is given; set {key} in the recipe or on the command line')
    return recipe


def _with_short_warmup(values: dict[str, Any]) -> dict[str, Any]:
    """The same with a fifth of the epochs as warm-up if the run ends before the default one, which nobody asked for."""
    epochs = values.get('epochs')
    if 'warmup_epochs' in values or not isinstance(epochs, int) or not 0 < epochs <= Recipe.warmup_epochs:
        return values
    return {**values, 'warmup_epochs': epochs / 5}


def _read(file: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe and its bases; `heirs` are the files on the way to it."""
    chain = (*heirs, file)
    if file.resolve() in {heir.resolve() for heir in heirs}:
        raise ValueError(f'the bases of recipes form a circle: {" -> ".join(map(str, chain))}')
    if heirs and not file.is_file():
        raise FileNotFoundError(f'no file {file}, the base of {heirs[-1]}')
    text = read_small(file)
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f'{file} is not YAML: {error}') from error
    if not isinstance(values, dict):
        raise ValueError(f'{file} holds no keys and values')
    base = values.pop('base', None)
    _check_keys(values, f'in {file}')
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f'base is {base!r} in {file}; give the path of a recipe')
    return {**_read(file.parent / base, chain), **values}


def _check_keys(given: Iterable[Any], where: str) -> None:
    known = [key.name for key in fields(Recipe)]
    for key in given:
        if key not in known:
            raise ValueError(f'unknown key {key!r} {where}{_closest(str(key), known)}')


def describe_fields() -> list[tuple[str, str, str]]:
    """(key, default, meaning) of everything that a recipe can say."""
    rows = []
    for key in fields(Recipe):
        default = key.default_factory() if key.default is MISSING else key.default
        allowed = f' ({", ".join(key.metadata["allowed"])})' if key.metadata['allowed'] else ''
        rows.append((key.name, 'none' if default is None else f'{default}', key.metadata['meaning'] + allowed))
    return rows
