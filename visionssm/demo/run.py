"""The demo: real handwritten digits, a small backbone trained from scratch on a CPU, saved, loaded back, and drawn.

The digits are scikit-learn's copy of UCI's Optical Recognition of Handwritten Digits test set: 1,797 images of 8 x 8
pixels. A stratified fifth is held out and never trained on. Needs the extra `demo`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from visionssm.apps.classify import classify
from visionssm.data.digits import CLASSES, Digits, load_digits
from visionssm.extras import check_extra
from visionssm.files import check_replaceable, replaced_folder
from visionssm.train.loop import Epoch
from visionssm.train.model import save_model
from visionssm.train.run import Trainer

from .training import DemoOptions, Trained, logits_of, make_trainer, recipe_of, train

_FILES = {'config.json', 'model.safetensors', 'history.csv', 'demo.png', 'samples'}


def check_extras() -> None:
    """Raise `MissingExtraError` unless scikit-learn, matplotlib and tqdm can be imported."""
    check_extra('the demo', 'demo', 'sklearn', 'matplotlib', 'tqdm')


def reload(folder: Path) -> nn.Module:
    """The saved model, loaded as any program with timm would."""
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
        output: Folder to write; that of an earlier demo is replaced.
        say: Takes lines of text for the user.
        progress: Draw a progress bar instead of a line per epoch.

    Raises:
        ValueError: If an option is not allowed, or `output` holds anything but a demo.
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
        if not torch.equal(logits_of(loaded, trained.images), logits_of(trained.model, trained.images)):
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
    """`train` with a progress bar, or a line per epoch."""
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
