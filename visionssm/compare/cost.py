"""What models cost: parameters, multiply-adds, throughput taken in turns, peak memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from visionssm.catalog.macs import count_macs
from visionssm.catalog.models import sketch
from visionssm.train.data import channels_of
from visionssm.train.model import model_arguments

from .candidates import Candidate


def interleaved_medians(sides: Mapping[str, tuple[Callable[[], float], int]]) -> dict[str, float]:
    """Median seconds of every side; (timer, rounds), the sides taken in turn so that drift affects all alike.

    Every other turn goes backwards: who comes after a long run of something else is slower.
    """
    for timer, _ in sides.values():
        timer()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(max(rounds for _, rounds in sides.values())):
        for name, (timer, rounds) in list(sides.items())[:: -1 if turn % 2 else 1]:
            if turn < rounds:
                times[name].append(timer())
    return {name: statistics.median(values) for name, values in times.items()}


def peak_extra_bytes(function: Callable[[], object]) -> int:
    """Bytes that `function` allocated on the CPU at its peak beyond what was there, by torch's own record."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == '[memory]']
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    del result
    return peak


def describe(candidate: Candidate, num_classes: int) -> dict[str, Any]:
    """Input size, parameters and multiply-adds of a candidate, without its weights.

    Raises:
        ValueError: If there is no such model, or it can't take images of that size.
    """
    channels = channels_of(candidate.recipe)
    kwargs, side = model_arguments(candidate.recipe, channels, num_classes)
    model = sketch(candidate.recipe.model, **kwargs).eval()
    size = (channels, side, side)
    try:
        macs = count_macs(model, size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f'{candidate.name} cannot take images of {side} pixels: {error}') from error
    return {'input': list(size), 'parameters': sum(p.numel() for p in model.parameters()), 'macs': macs}


def measure(
    candidates: list[Candidate],
    sizes: Mapping[str, list[int]],
    num_classes: int,
    batch: int,
    rounds: int,
    device: torch.device,
    training: bool,
) -> dict[str, dict[str, float | None]]:
    """Throughput and memory of the candidates, all in memory at once and timed in turn.

    Args:
        candidates: Which.
        sizes: Channels, height and width of their images.
        num_classes: Of the data.
        batch: Images at once, random ones.
        rounds: Timed runs of each.
        device: Where to run.
        training: Whether to measure the memory of a training step, too.

    Returns:
        `images_per_second`, `memory_mib` and `training_memory_mib` by name; None: not known here.
    """
    found: dict[str, dict[str, float | None]] = {}
    sides: dict[str, tuple[Callable[[], float], int]] = {}
    for candidate in candidates:
        kwargs, _ = model_arguments(candidate.recipe, sizes[candidate.name][0], num_classes)
        model = timm.create_model(candidate.recipe.model, **kwargs).eval().to(device)
        x = torch.randn(batch, *sizes[candidate.name], device=device)
        sides[candidate.name] = partial(_seconds, partial(_infer, model, x), device), rounds
        memory = [_peak_mib(partial(_infer, model, x), device)]
        if training:
            memory.append(_peak_mib(partial(_step, model, x), device))
            model.zero_grad()
            model.eval()
        found[candidate.name] = dict(zip(('memory_mib', 'training_memory_mib'), memory, strict=False))
    for name, median in interleaved_medians(sides).items():
        found[name]['images_per_second'] = batch / median
    return found


def _infer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x)


def _step(model: nn.Module, x: torch.Tensor) -> None:
    """A forward and a backward pass, with the gradients of all weights."""
    model.train()
    model(x).float().square().mean().backward()


def _wait(device: torch.device) -> None:
    if device.type in ('cuda', 'mps', 'xpu'):
        getattr(torch, device.type).synchronize()


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _peak_mib(function: Callable[[], object], device: torch.device) -> float | None:
    """Memory beyond the weights and the images; None where torch does not count it."""
    function()  # what is set up or compiled at first use is not counted
    if device.type == 'cpu':
        peak = peak_extra_bytes(function)
    elif device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        return None
    return math.ceil(peak / 2**20 * 10) / 10
