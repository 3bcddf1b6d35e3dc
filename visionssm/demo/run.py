"""The demo: real handwritten digits, a small backbone trained from scratch on a CPU, saved, loaded back, and drawn.

The digits are scikit-learn's copy of UCI's Optical Recognition of Handwritten Digits test set: 1,797 images of 8 x 8
pixels. A stratified fifth is held out and never trained on. Needs the extra `demo`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from visionssm.apps.classify import classify
from visionssm.catalog.configs import find_config
from visionssm.catalog.models import check_model, sketch, takes_argument
from visionssm.data.digits import CLASSES, Digits, load_digits
from visionssm.extras import check_extra
from visionssm.files import check_replaceable, replaced_folder
from visionssm.scans import get_scan
from visionssm.train.checkpoint import random_states, set_random_states
from visionssm.train.loop import Epoch
from visionssm.train.model import save_model
from visionssm.train.parallel import start_processes
from visionssm.train.recipe import Recipe, load_recipe
from visionssm.train.run import Trainer

_FILES = {'config.json', 'model.safetensors', 'history.csv', 'demo.png', 'samples'}


@dataclass(frozen=True)
class DemoOptions:
    """What to train; all else is said by the recipe `digits`.

    Attributes:
        model: Registered name.
        scan: Scan order: a name or JSON; None: the model's own.
        epochs: Passes over the training images.
        seed: Of weights, shuffling and augmentation.
        limit: Use only so many training images per epoch; None: all.
    """

    model: str = 'vmamba_nano'
    scan: str | None = None
    epochs: int = 16
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model and how it does on the held-out images.

    Attributes:
        model: In evaluation mode.
        images: Those images as the model takes them, (n, 1, S, S).
        history: One entry per epoch.
        probabilities: Of the held-out images, (n, 10).
        accuracy: On them, in [0, 1].
    """

    model: nn.Module
    images: Tensor
    history: list[Epoch]
    probabilities: Tensor
    accuracy: float


def check_extras() -> None:
    """Raise `MissingExtraError` unless scikit-learn, matplotlib and tqdm can be imported."""
    check_extra('the demo', 'demo', 'sklearn', 'matplotlib', 'tqdm')


def recipe_of(options: DemoOptions) -> Recipe:
    """The recipe `digits` with the model, scan order, length and seed of `options`.

    Raises:
        ValueError: If the model or the scan is unknown, or the model has no scan to choose.
    """
    check_model(options.model)
    model_args = {}
    if options.scan is not None:
        try:
            get_scan(options.scan)
        except TypeError as error:  # an argument of the wrong type, in text that a user typed
            raise ValueError(str(error)) from error
        if not takes_argument(sketch(options.model), 'scan'):
            raise ValueError(f'{options.model} has no scan order to choose; leave --scan out')
        model_args['scan'] = options.scan
        sketch(options.model, **model_args)  # raises if the scan does not fit the model
    recipe = load_recipe(find_config('digits'))
    return replace(
        recipe,
        model=options.model,
        model_args=model_args,
        epochs=options.epochs,
        warmup_epochs=min(1, options.epochs - 1),
        batch_size=min(recipe.batch_size, options.limit or recipe.batch_size),
        train_samples=options.limit,
        seed=options.seed,
    )


@contextmanager
def make_trainer(options: DemoOptions) -> Iterator[Trainer]:
    """The trainer of `options` on the CPU; afterwards the random generators are as they were.

    Raises:
        ValueError: As `recipe_of`.
    """
    states = random_states(torch.device('cpu'))
    try:
        with start_processes('cpu') as processes:
            yield Trainer(recipe_of(options), processes, lambda line: None)
    finally:
        set_random_states(states, torch.device('cpu'))


def train(
    trainer: Trainer,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train; what is evaluated and returned is the running average of the weights.

    Args:
        trainer: As `make_trainer` gives it.
        on_step: Called after every update.
        on_epoch: Called after every epoch.
    """
    history = trainer.fit(on_step=lambda _: on_step(), on_epoch=on_epoch)
    model = trainer.ema.module.eval()
    images, labels = (torch.cat(parts) for parts in zip(*trainer.data.eval_batches(), strict=True))
    logits = _logits(model, images)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return Trained(model, images, history, logits.softmax(1), accuracy)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(part) for part in images.split(128)])


def reload(folder: Path) -> nn.Module:
    """The saved model as any program with timm gets it."""
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def run_demo(
    options: DemoOptions,
    output: Path,
    say: Callable[[str], None],
    progress: bool = False,
) -> Trained:
    """Train, report, save, load back, classify and draw; `output` appears at the end, whole or not at all.

    Args:
        options: What to train.
        output: Folder to write; one of an earlier demo is replaced.
        say: Takes lines of text for the user.
        progress: Draw a progress bar instead of a line per epoch.

    Raises:
        ValueError: If an option is not allowed, or `output` holds something else than a demo.
        OSError: If `output` can't be written.
        MissingExtraError: If a package is missing.
    """
    check_extras()
    check_replaceable(output, _FILES, 'demo')
    digits = load_digits()
    with make_trainer(options) as trainer:
        model, (_, height, width) = trainer.model, trainer.image.input_size
        parameters = sum(p.numel() for p in model.parameters())
        say(f'{trainer.data.images} real digits to train on, {len(digits.test_labels)} held out')
        scan = getattr(model, 'scan', 'of its own')
        say(f'{options.model}: {parameters / 1e6:.2f} M parameters, scan {scan}, images enlarged to {height}x{width}')
        trained = train_with_progress(trainer, say, progress)
    wrong = round((1 - trained.accuracy) * len(digits.test_labels))
    seconds = trained.history[-1].seconds
    say(f'held-out accuracy {trained.accuracy:.2%} ({wrong} of {len(digits.test_labels)} wrong) after {seconds:.0f} s')

    with replaced_folder(output) as folder:
        note = f'trained by `visionssm demo` on scikit-learn digits: {trained.accuracy:.2%} of a held-out fifth'
        save_model(trained.model, folder, CLASSES, trainer.model_args, note)
        loaded = reload(folder)
        if not torch.equal(_logits(loaded, trained.images), _logits(trained.model, trained.images)):
            raise RuntimeError('the model loaded back from its folder does not give the same logits')
        say('saved, and loaded back through timm with identical logits')
        files = _write_samples(digits, folder / 'samples')
        for result in classify(loaded, files, topk=2):
            best, second = result['predictions']
            say(
                f'  {Path(result["file"]).name}: {best["label"]} ({best["probability"]:.1%}), '
                f'then {second["label"]} ({second["probability"]:.1%})'
            )
        _write_history(trained.history, folder / 'history.csv')
        from .picture import draw  # matplotlib

        draw(trained, digits, options.model, folder / 'demo.png')
    say(f'picture: {output / "demo.png"}')
    say(f'use it:  visionssm classify {output / "samples" / "*.png"} --model local-dir:{output}')
    return trained


def compare_scans(
    options: DemoOptions, scans: list[str], say: Callable[[str], None], progress: bool = False
) -> list[tuple[str, Trained]]:
    """Train the same model once per scan order, each from the same seed.

    Raises:
        ValueError: If an order is unknown or the model has none to choose; before anything is trained.
        MissingExtraError: If a package is missing.
    """
    check_extras()
    runs = [replace(options, scan=scan) for scan in scans]
    for run in runs:
        recipe_of(run)
    results = []
    for run in runs:
        say(f'{run.model} with scan {run.scan}')
        with make_trainer(run) as trainer:
            results.append((str(run.scan), train_with_progress(trainer, say, progress)))
    return results


def train_with_progress(trainer: Trainer, say: Callable[[str], None], progress: bool) -> Trained:
    """`train`, seen: a progress bar, or a line per epoch."""
    from tqdm import tqdm

    epochs = trainer.recipe.epochs
    with tqdm(
        total=trainer.data.updates * epochs, disable=not progress, unit='step', dynamic_ncols=True, leave=False
    ) as bar:

        def on_epoch(epoch: Epoch) -> None:
            text = f'epoch {epoch.number}/{epochs}: loss {epoch.loss:.3f}, held-out accuracy {epoch.accuracy:.1%}'
            if progress:
                bar.set_description(text)
            else:
                say(f'{text}, {epoch.seconds:.0f} s')

        return train(trainer, bar.update, on_epoch)


def _write_samples(digits: Digits, folder: Path) -> list[Path]:
    """The first held-out image of each digit as a file named by its label."""
    from PIL import Image

    folder.mkdir()
    files = []
    for digit in digits.test_labels.unique().tolist():
        index = int((digits.test_labels == digit).nonzero()[0])
        file = folder / f'digit_{digit}.png'
        Image.fromarray((digits.test_images[index, 0] * 255).round().to(torch.uint8).numpy()).save(file)
        files.append(file)
    return files


def _write_history(history: list[Epoch], file: Path) -> None:
    with file.open('w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(['epoch', 'loss', 'accuracy', 'seconds'])
        for epoch in history:
            writer.writerow([epoch.number, f'{epoch.loss:.5f}', f'{epoch.accuracy:.5f}', f'{epoch.seconds:.2f}'])
