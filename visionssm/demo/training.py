"""What the demo trains: the recipe `digits` with another model, scan order, length or seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from visionssm.catalog.configs import find_config
from visionssm.catalog.models import check_model, sketch, takes_argument
from visionssm.scans import get_scan
from visionssm.train.checkpoint import random_states, set_random_states
from visionssm.train.loop import Epoch
from visionssm.train.parallel import start_processes
from visionssm.train.recipe import Recipe, load_recipe
from visionssm.train.run import Trainer


@dataclass(frozen=True)
class DemoOptions:
    """What to train; the recipe `digits` says the rest.

    Attributes:
        model: Registered name.
        scan: Scan order: a name or JSON; None: the model's own.
        epochs: Passes over the training images.
        seed: Of weights, shuffling and augmentation.
        limit: Training images per epoch; None: all.
    """

    model: str = 'vmamba_nano'
    scan: str | None = None
    epochs: int = 16
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model and its results on the held-out images.

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
        ValueError: As for `recipe_of`.
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
        trainer: From `make_trainer`.
        on_step: Called after every update.
        on_epoch: Called after every epoch.
    """
    history = trainer.fit(on_step=lambda _: on_step(), on_epoch=on_epoch)
    model = trainer.ema.module.eval()
    images, labels = (torch.cat(parts) for parts in zip(*trainer.data.eval_batches(), strict=True))
    logits = logits_of(model, images)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return Trained(model, images, history, logits.softmax(1), accuracy)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of many images, (n, classes)."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in images.split(128)])
