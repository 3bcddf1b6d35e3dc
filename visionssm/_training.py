"""One training loop for everything that trains here; data, optimiser and schedule come ready-made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class Scheduler(Protocol):
    """What `fit` needs of a schedule that timm made with `step_on_epochs=False`."""

    def step_update(self, num_updates: int) -> None:
        """Set the learning rate for the next update."""


class Batches(Sized, Iterable[tuple[Tensor, Tensor]], Protocol):
    """(images, labels) batches of one epoch; every iteration is a new epoch."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: From 1.
        loss: Mean training loss.
        accuracy: Of the evaluated model, in [0, 1].
        seconds: Wall time since training began.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float


class NonFiniteLossError(ArithmeticError):
    """The loss is no longer a number: the message says where."""


def fit(
    model: nn.Module,
    batches: Batches,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    evaluate: Callable[[nn.Module], float],
    epochs: int,
    ema: ModelEmaV3 | None = None,
    clip_grad: float | None = None,
    on_step: Callable[[float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train `model` in place.

    Args:
        model: The model, on the device of the batches.
        batches: Training data.
        loss_fn: Mean loss of (logits, labels).
        optimizer: Over the model's parameters.
        scheduler: Stepped before every update.
        evaluate: Accuracy of a model; called after each epoch, with the average if there is one.
        epochs: Passes over `batches`.
        ema: Average of the weights, updated after every step.
        clip_grad: Largest norm of the gradient; None: not clipped.
        on_step: Called with the loss of every step.
        on_epoch: Called after every epoch.

    Returns:
        One entry per epoch.

    Raises:
        NonFiniteLossError: If the loss is infinite or not a number; the weights are then those before that step.
    """
    start, step, history = time.perf_counter(), 0, []
    for number in range(1, epochs + 1):
        model.train()
        losses = []
        for images, labels in batches:
            scheduler.step_update(step)
            loss = loss_fn(model(images), labels)
            value = loss.item()
            if not torch.isfinite(loss):
                raise NonFiniteLossError(f'the loss is {value} at step {step} (epoch {number})')
            optimizer.zero_grad()
            loss.backward()
            if clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
            optimizer.step()
            step += 1
            if ema is not None:
                ema.update(model, step)
            losses.append(value)
            if on_step is not None:
                on_step(value)
        accuracy = evaluate(model if ema is None else ema.module)
        history.append(Epoch(number, sum(losses) / len(losses), accuracy, time.perf_counter() - start))
        if on_epoch is not None:
            on_epoch(history[-1])
    return history
