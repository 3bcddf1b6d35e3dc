"""The one training loop; data, optimiser, schedule and scaling come ready-made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

Batches = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]
Forward = Callable[[Tensor], Any]


class Scheduler(Protocol):
    """What `fit` needs of a schedule that timm made with `step_on_epochs=False`."""

    def step_update(self, num_updates: int) -> None:
        """Set the learning rate for the next update."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: From 1.
        loss: Mean training loss.
        accuracy: Of the evaluated model, in [0, 1]; NaN where nothing is evaluated.
        seconds: Time since training began, without interruptions.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float


@dataclass
class Progress:
    """Where a run is; together with weights, optimiser and random states, all it needs to go on.

    Attributes:
        epoch: Finished epochs.
        batch: Updates done in the running epoch, skipped ones included.
        step: Updates done in total, skipped ones included.
        skipped: Updates left out because a loss or gradient was not finite.
        losses: Sum of the losses of the running epoch, and how many.
        history: One entry per finished epoch.
        seconds: Training time.
        loss: Of the last update.
        norm: Of its gradient.
        stop: Whether a process was asked to stop.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    losses: tuple[float, int] = (0.0, 0)
    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    loss: float = math.nan
    norm: float = math.nan
    stop: bool = False


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is infinite or NaN; the message says where."""


class Alone:
    """A process of its own: what `fit` asks of several (`parallel.Processes`)."""

    def mean(self, values: list[float]) -> list[float]:
        """Average over the processes."""
        return values

    def synchronising(self, last: bool) -> AbstractContextManager:
        """While it lasts, gradients are exchanged only if `last`."""
        return nullcontext()


def fit(
    model: nn.Module,
    batches: Batches,
    loss_fn: Callable[[Forward, Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    evaluate: Callable[[nn.Module], float] | None,
    epochs: int,
    *,
    forward: Forward | None = None,
    processes: Alone | None = None,
    accumulate: int = 1,
    ema: ModelEmaV3 | None = None,
    clip_grad: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    skip_non_finite: bool = False,
    to_train: Callable[[nn.Module], Any] = nn.Module.train,
    interrupted: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train `model` in place.

    Args:
        model: The model, on the device of the batches.
        batches: Batches of an epoch (from 0) from an update on, `accumulate` of them per update.
        loss_fn: Mean loss of (forward, images, labels).
        optimizer: Over the model's parameters.
        scheduler: Stepped before every update.
        evaluate: Accuracy of a model; called after each epoch, with the average if there is one. None: none.
        epochs: Passes over the data.
        forward: How to run `model`, such as compiled or on several devices; None: as it is.
        processes: Those that train together; None: this one.
        accumulate: Batches whose gradients make one update.
        ema: Average of the weights, updated after every step.
        clip_grad: Largest norm of the gradient; None: not clipped.
        scaler: Scales the loss, for fp16; updates whose scaled gradient overflows are left out.
        skip_non_finite: Leave out updates whose loss or gradient is not finite, instead of stopping.
        to_train: Puts the model into training mode.
        interrupted: Whether this process was asked to stop; `progress.stop` is true where any was.
        progress: Where to go on; None: from the start. Kept up to date.
        on_step: Called after every update.
        on_epoch: Called after every epoch.

    Returns:
        One entry per epoch.

    Raises:
        NonFiniteLossError: If the loss or its gradient is infinite or NaN; the weights are then those before
            that step. With a scaler, if gradients still overflow at a scale of 1.
    """
    forward = model if forward is None else forward
    processes = Alone() if processes is None else processes
    progress = Progress() if progress is None else progress
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = time.perf_counter() - progress.seconds
    for epoch in range(progress.epoch, epochs):
        to_train(model)
        parts = iter(batches(epoch, progress.batch))
        for part in parts:
            scheduler.step_update(progress.step)
            # a batch that is left out must not stay in the statistics of batch norms either
            buffers = [b.clone() for b in model.buffers()] if skip_non_finite else []
            optimizer.zero_grad()
            total = 0.0
            for i in range(accumulate):
                images, labels = part if i == 0 else next(parts)
                with processes.synchronising(i == accumulate - 1):
                    loss = loss_fn(forward, images, labels) / accumulate
                    (loss if scaler is None else scaler.scale(loss)).backward()
                total = total + loss.detach()
            if scaler is not None:
                scaler.unscale_(optimizer)
            norm = _clip(parameters, clip_grad)
            progress.loss, stop = processes.mean([float(total), float(interrupted())])
            progress.norm, progress.stop = norm, stop > 0
            finite = math.isfinite(progress.loss) and (scaler is not None or math.isfinite(norm))
            if finite:
                _update(optimizer, scaler, progress, epoch)
                progress.losses = progress.losses[0] + progress.loss, progress.losses[1] + 1
            elif skip_non_finite:
                progress.skipped += 1
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                if scaler is not None:
                    scaler.update()
            else:
                where = first_non_finite(model, lambda: loss_fn(model, images, labels))  # noqa: B023 (called here)
                raise NonFiniteLossError(
                    f'the loss is {progress.loss}, the norm of its gradient {norm} '
                    f'at step {progress.step} (epoch {epoch + 1}); {where}'
                )
            progress.step += 1
            progress.batch += 1
            progress.seconds = time.perf_counter() - start
            if finite and ema is not None:
                ema.update(model, progress.step)
            if on_step is not None:
                on_step(progress)
        accuracy = math.nan if evaluate is None else evaluate(model if ema is None else ema.module)
        total, count = progress.losses
        progress.seconds = time.perf_counter() - start
        progress.history.append(Epoch(epoch + 1, total / count if count else math.nan, accuracy, progress.seconds))
        progress.epoch, progress.batch, progress.losses = epoch + 1, 0, (0.0, 0)
        if on_epoch is not None:
            on_epoch(progress.history[-1])
    return progress.history


def _clip(parameters: list[nn.Parameter], largest: float | None) -> float:
    """The norm of the gradient, which is clipped as asked; on one device or sharded over several."""
    if largest is None:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    else:
        norm = nn.utils.clip_grad_norm_(parameters, largest)
    return float(norm.full_tensor() if hasattr(norm, 'full_tensor') else norm)


def _update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, progress: Progress, epoch: int
) -> None:
    if scaler is None:
        optimizer.step()
        return
    scaler.step(optimizer)
    scaler.update()
    if not math.isfinite(progress.norm):
        progress.skipped += 1
        if scaler.get_scale() < 1:
            raise NonFiniteLossError(
                f'fp16 gradients overflow even unscaled at step {progress.step} (epoch {epoch + 1}); use bf16 or fp32'
            )


def first_non_finite(model: nn.Module, run: Callable[[], Any]) -> str:
    """Say which module of `model` is the first to put out infinities or NaNs when `run` runs it."""
    found: list[str] = []
    # modules finish from the inside out, so the first to show them is the one that made them
    with _watching(model, found), torch.no_grad():
        run()
    if found:
        return found[0]
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if bad:
        return f'all outputs are finite when run again, but the gradient of {bad[-1]} is not'
    return 'all outputs are finite when run again in this process'


@contextmanager
def _watching(model: nn.Module, found: list[str]) -> Iterator[None]:
    def check(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _finite(output):
            came_in = '' if _finite(inputs) else ', whose input is not finite'
            found.append(f'first in the output of {name or "the model"} ({type(module).__name__}){came_in}')

    handles = [
        module.register_forward_hook(lambda *args, name=name: check(name, *args))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return bool(values.isfinite().all())
    return all(map(_finite, values)) if isinstance(values, tuple | list) else True
