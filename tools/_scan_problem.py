"""The scans that benchmarks time, as functions without arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from visionssm.ops import selective_scan
from visionssm.scans import get_scan


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, wall time by default."""
    start = clock()
    function()
    return clock() - start


def scan_problem(batch: int, height: int, width: int, channels: int, directions: int, d_state: int):
    """Random tensors of one scan, with requires_grad, and the order of its directions."""
    generator = torch.Generator().manual_seed(0)
    length = height * width

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {
        'u': normal(batch, length, channels),
        # as a batched projection leaves it: one matrix per direction
        'delta': normal(directions, batch, length, channels).permute(1, 2, 0, 3),
        'A': -torch.exp(normal(directions, channels, d_state)),
        'B': normal(batch, length, directions, d_state),
        'C': normal(batch, length, directions, d_state),
        'D': normal(directions, channels),
        'delta_bias': normal(directions, channels) - 3,
    }
    name = 'cross' if directions == 4 else 'bidirectional'
    order = torch.from_numpy(get_scan(name).table(height, width).copy())
    return {key: x.requires_grad_() for key, x in tensors.items()}, order


def timed_scan(backend: str, tensors: dict[str, Tensor], order: Tensor) -> dict[str, Callable[[], float]]:
    """`timed` of one of our backends."""
    return timed(
        partial(selective_scan, **tensors, delta_softplus=True, order=order, backend=backend), list(tensors.values())
    )


def timed(scan: Callable[[], Tensor], leaves: list[Tensor]) -> dict[str, Callable[[], float]]:
    """Seconds of inference, of a backward pass for the gradients of all `leaves`, and of both passes of training."""
    grad = torch.randn(scan().shape, generator=torch.Generator().manual_seed(1))

    def forward() -> float:
        with torch.no_grad():
            return seconds(scan)

    def backward() -> float:
        out = scan()
        return seconds(lambda: torch.autograd.grad(out, leaves, grad))

    return {
        'forward': forward,
        'backward': backward,
        'forward+backward': lambda: seconds(lambda: torch.autograd.grad(scan(), leaves, grad)),
    }
