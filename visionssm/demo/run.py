"""The demo: real handwritten digits, a small backbone trained from scratch on a CPU, saved, loaded back, and drawn.

The digits are scikit-learn's copy of UCI's Optical Recognition of Handwritten Digits test set: 1,797 images of 8 x 8
pixels. A stratified fifth is held out and never trained on. Needs the extra `demo`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from visionssm.apps.classify import classify
from visionssm.catalog.models import check_model, sketch, takes_argument
from visionssm.data.digits import CLASSES, Digits, fitting_size, load_digits
from visionssm.extras import check_extra
from visionssm.files import check_replaceable, replaced_folder
from visionssm.scans import get_scan
from visionssm.train.loop import Epoch, fit
from visionssm.train.model import save_model

_MEAN = _STD = 0.5
_FILES = {'config.json', 'model.safetensors', 'history.csv', 'demo.png', 'samples'}


@dataclass(frozen=True)
class DemoOptions:
    """What to train and how.

    Attributes:
        model: Registered name.
        scan: Scan order: a name or JSON; None: the model's own.
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Highest learning rate of AdamW; a cosine after one epoch of warm-up.
        seed: Of weights, shuffling and augmentation.
        limit: Use only so many images, the split included; None: all.
    """

    model: str = 'vmamba_nano'
    scan: str | None = None
    epochs: int = 16
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model and how it does on the held-out images.

    Attributes:
        model: In evaluation mode.
        size: Side of the images that it takes.
        history: One entry per epoch.
        probabilities: Of the held-out images, (n, 10).
        accuracy: On them, in [0, 1].
    """

    model: nn.Module
    size: int
    history: list[Epoch]
    probabilities: Tensor
    accuracy: float


def check_extras() -> None:
    """Raise `MissingExtraError` unless scikit-learn, matplotlib and tqdm can be imported."""
    check_extra('the demo', 'demo', 'sklearn', 'matplotlib', 'tqdm')


def create_model(options: DemoOptions) -> tuple[nn.Module, int]:
    """The untrained model for grey images of ten classes, and the side of the images that it gets.

    Any backbone fits: images are enlarged until the last map has more than one token.

    Raises:
        ValueError: If the model or the scan is unknown, or the model has no scan to choose.
    """
    check_model(options.model)
    kwargs: dict[str, Any] = {'in_chans': 1, 'num_classes': len(CLASSES)}
    if options.scan is not None:
        _check_scan(options.scan)
        kwargs['scan'] = options.scan
    plain = sketch(options.model)
    if options.scan is not None and not takes_argument(plain, 'scan'):
        raise ValueError(f'{options.model} has no scan order to choose; leave --scan out')
    size = fitting_size(options.model, plain)
    if takes_argument(plain, 'img_size'):
        kwargs['img_size'] = size
    overlay = {
        'input_size': (1, size, size),
        'mean': (_MEAN,),
        'std': (_STD,),
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'license': 'apache-2.0',
        'notes': None,
    }
    model = timm.create_model(options.model, pretrained_cfg_overlay=overlay, **kwargs)
    return model, size


def _check_scan(spec: str) -> None:
    try:
        get_scan(spec)
    except TypeError as error:  # an argument of the wrong type, in text that a user typed
        raise ValueError(str(error)) from error


def enlarge(images: Tensor, size: int) -> Tensor:
    """Images at the side that the model takes; what timm's transform does with a file."""
    return F.interpolate(images, size=(size, size), mode='bilinear')


class AugmentedBatches:
    """Shuffled batches with small rotations, shifts and changes of size; every iteration is a new epoch.

    Args:
        images: In [0, 1], (n, 1, S, S).
        labels: (n,).
        batch_size: Images per batch; the rest of an epoch is left out, and comes in another.
        seed: Of shuffling and augmentation.
        degrees: Largest rotation.
        shift: Largest shift over the side of the image.
        zoom: Largest change of size.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        degrees: float = 12.0,
        shift: float = 0.1,
        zoom: float = 0.1,
    ) -> None:
        self.images, self.labels, self.batch_size = images, labels, min(batch_size, len(labels))
        self.generator = torch.Generator().manual_seed(seed)
        self.radians, self.shift, self.zoom = math.radians(degrees), shift, zoom

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        shuffled = torch.randperm(len(self.labels), generator=self.generator)
        for i in range(len(self)):
            chosen = shuffled[i * self.batch_size : (i + 1) * self.batch_size]
            yield _normalise(self._move(self.images[chosen])), self.labels[chosen]

    def _move(self, images: Tensor) -> Tensor:
        def up_to(most: float) -> Tensor:
            return (torch.rand(len(images), generator=self.generator) * 2 - 1) * most

        angle, scale = up_to(self.radians), 1 + up_to(self.zoom)
        cos, sin = angle.cos() * scale, angle.sin() * scale
        # affine_grid measures in half sides
        rows = [torch.stack([cos, -sin, up_to(2 * self.shift)], 1), torch.stack([sin, cos, up_to(2 * self.shift)], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)  # the background is 0


def _normalise(images: Tensor) -> Tensor:
    return (images - _MEAN) / _STD


def train(
    options: DemoOptions,
    digits: Digits,
    on_step: Callable[[float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train one model; what is evaluated and returned is the running average of its weights.

    Raises:
        ValueError: As `create_model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model, size = create_model(options)
        batches = AugmentedBatches(
            enlarge(digits.train_images, size), digits.train_labels, options.batch_size, options.seed
        )
        test_images = _normalise(enlarge(digits.test_images, size))
        optimizer = create_optimizer_v2(model, 'adamw', lr=options.lr, weight_decay=0.05)
        scheduler, _ = create_scheduler_v2(
            optimizer,
            'cosine',
            num_epochs=options.epochs,
            warmup_epochs=min(1, options.epochs - 1),
            warmup_lr=options.lr / 100,
            min_lr=options.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=len(batches),
        )
        criterion = LabelSmoothingCrossEntropy(0.1)
        ema = ModelEmaV3(model, decay=0.99, use_warmup=True)

        def evaluate(model: nn.Module) -> float:
            return _accuracy(_logits(model, test_images), digits.test_labels)

        history = fit(
            model,
            lambda epoch, first: batches,
            lambda forward, images, labels: criterion(forward(images), labels),
            optimizer,
            scheduler,
            evaluate,
            options.epochs,
            ema=ema,
            clip_grad=1.0,
            on_step=None if on_step is None else lambda progress: on_step(progress.loss),
            on_epoch=on_epoch,
        )
    logits = _logits(ema.module, test_images)
    return Trained(ema.module.eval(), size, history, logits.softmax(1), _accuracy(logits, digits.test_labels))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(part) for part in images.split(128)])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def save(trained: Trained, folder: Path, note: str) -> None:
    """Write the model in timm's Hub layout: `config.json`, `model.safetensors`."""
    save_model(trained.model, folder, CLASSES, {}, note)


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
    digits = load_digits(options.limit)
    model, size = create_model(options)
    parameters = sum(p.numel() for p in model.parameters())
    say(f'{len(digits.train_labels)} real digits to train on, {len(digits.test_labels)} held out')
    scan = getattr(model, 'scan', 'of its own')
    say(f'{options.model}: {parameters / 1e6:.2f} M parameters, scan {scan}, images enlarged to {size}x{size}')
    trained = train_with_progress(options, digits, say, progress)
    wrong = round((1 - trained.accuracy) * len(digits.test_labels))
    seconds = trained.history[-1].seconds
    say(f'held-out accuracy {trained.accuracy:.2%} ({wrong} of {len(digits.test_labels)} wrong) after {seconds:.0f} s')

    with replaced_folder(output) as folder:
        note = f'trained by `visionssm demo` on scikit-learn digits: {trained.accuracy:.2%} of a held-out fifth'
        save(trained, folder, note)
        loaded = reload(folder)
        images = _normalise(enlarge(digits.test_images, size))
        if not torch.equal(_logits(loaded, images), _logits(trained.model, images)):
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
    digits = load_digits(options.limit)
    runs = [replace(options, scan=scan) for scan in scans]
    for run in runs:
        create_model(run)
    results = []
    for run in runs:
        say(f'{run.model} with scan {run.scan}')
        results.append((str(run.scan), train_with_progress(run, digits, say, progress)))
    return results


def train_with_progress(options: DemoOptions, digits: Digits, say: Callable[[str], None], progress: bool) -> Trained:
    """`train`, seen: a progress bar, or a line per epoch."""
    from tqdm import tqdm

    steps = max(1, len(digits.train_labels) // options.batch_size) * options.epochs
    with tqdm(total=steps, disable=not progress, unit='step', dynamic_ncols=True, leave=False) as bar:

        def on_step(loss: float) -> None:
            bar.update()

        def on_epoch(epoch: Epoch) -> None:
            text = (
                f'epoch {epoch.number}/{options.epochs}: loss {epoch.loss:.3f}, held-out accuracy {epoch.accuracy:.1%}'
            )
            if progress:
                bar.set_description(text)
            else:
                say(f'{text}, {epoch.seconds:.0f} s')

        return train(options, digits, on_step, on_epoch)


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
