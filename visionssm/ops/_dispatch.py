"""Which backend runs an op: explicit argument > `use_backend` > `VISIONSSM_BACKEND` > automatic, by tensor.

A backend is a module with `refuse(problem)`, `forward(...)` and `backward(...)`; adding one is one `Backend` entry.
Automatic takes the first backend that does not refuse; `torch` never does. A backend that is asked for by name and
refuses raises. A refusal in automatic mode is logged once with its reason.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

_logger = logging.getLogger('visionssm.ops')


MERGED, PER_DIRECTION, PER_STEP = 0, 1, 2  # what a scan returns: (B, L, D), (B, L, K, D), (B, T, K, D)


def output_shape(mode: int, delta: Tensor, order: Tensor | None) -> tuple[int, ...]:
    """Shape of what a scan returns in `mode`, of `delta` (B, L, K, D) and visiting orders (K, T)."""
    batch, length, directions, channels = delta.shape
    if mode == MERGED:
        return batch, length, channels
    rows = length if mode == PER_DIRECTION or order is None else order.shape[1]
    return batch, rows, directions, channels


class Problem(NamedTuple):
    """What a backend accepts or refuses by: device type, dtype of the tokens, d_state, steps, window (0: none)."""

    device: str
    dtype: torch.dtype
    d_state: int
    steps: int
    window: int


@dataclass(frozen=True)
class Backend:
    """One implementation of the scan: name, module, the device types that it serves (empty: all), what it is."""

    name: str
    module: str
    devices: tuple[str, ...]
    description: str
    automatic: bool = True


BACKENDS = (
    Backend('triton', 'visionssm_kernels.selective_scan', ('cuda',), 'fused GPU kernels, compiled at first use'),
    Backend('cpu', 'visionssm.ops._cpu', ('cpu',), "C++ compiled at first use by the machine's own compiler"),
    Backend('torch', 'visionssm.ops._torch', (), 'vectorised torch, any device'),
    Backend('reference', 'visionssm.ops._reference', (), 'sequential loop, the definition', automatic=False),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}
_override: ContextVar[str] = ContextVar('visionssm_backend', default='')


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and can't serve: the message says why."""


def _checked(name: str, origin: str) -> str:
    if name and name not in _BY_NAME:
        raise ValueError(f'{origin}: unknown backend {name!r}; choose from {", ".join(_BY_NAME)}')
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every scan inside the `with` block on the backend `name`: triton, cpu, torch or reference.

    Raises:
        ValueError: If there is no such backend.
        BackendUnavailableError: At the first scan, if the backend can't serve its tensors.
    """
    if not name:
        raise ValueError(f'use_backend: no backend named; choose from {", ".join(_BY_NAME)}')
    token = _override.set(_checked(name, 'use_backend'))
    try:
        yield
    finally:
        _override.reset(token)


def requested_backend(explicit: str | None = None) -> str:
    """The backend asked for by argument, context or environment; '' for automatic."""
    if explicit:
        return _checked(explicit, 'backend')
    return _override.get() or _checked(os.environ.get('VISIONSSM_BACKEND', ''), 'VISIONSSM_BACKEND')


def _load(backend: Backend) -> ModuleType | str:
    """The backend's module, or why it can't be imported."""
    try:
        return importlib.import_module(backend.module)
    except ImportError as error:
        return f'{backend.module} cannot be imported ({error})'


def refusal(name: str, problem: Problem) -> str:
    """Why the backend `name` can't serve `problem`; '' if it can."""
    backend = _BY_NAME[name]
    if backend.devices and problem.device not in backend.devices:
        return f'it serves {" and ".join(backend.devices)} tensors, these are on {problem.device}'
    module = _load(backend)
    if isinstance(module, str):
        return module
    refuse = getattr(module, 'refuse', None)
    return refuse(problem) if refuse else ''


@lru_cache(maxsize=4096)
def resolve(name: str, problem: Problem) -> ModuleType:
    """The module that runs `problem`: the backend `name`, or the first that accepts if `name` is ''."""
    if name:
        reason = refusal(name, problem)
        if reason:
            raise BackendUnavailableError(f'backend {name!r} was asked for and cannot run this scan: {reason}')
        return importlib.import_module(_BY_NAME[name].module)
    for backend in BACKENDS:
        if not backend.automatic:
            continue
        reason = refusal(backend.name, problem)
        if not reason:
            return importlib.import_module(backend.module)
        _explain_once(backend, problem.device, reason)
    raise BackendUnavailableError(f'no backend accepts {problem}')


@lru_cache(maxsize=256)
def _explain_once(backend: Backend, device: str, reason: str) -> None:
    # a device that the backend is meant for falls to a slower one: worth a warning; anything else is only information
    level = logging.WARNING if device in backend.devices and 'float64' not in reason else logging.INFO
    _logger.log(level, 'scan backend %r not used for %s tensors: %s', backend.name, device, reason)


def available_backends(device: str | torch.device = 'cpu', dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Every backend and why it would refuse a plain scan of `dtype` tensors on `device`; '' means that it would run.

    Automatic choice takes the first that would run; `reference` is only used when asked for.
    """
    problem = Problem(torch.device(device).type, dtype, 16, 64, 0)
    return {backend.name: refusal(backend.name, problem) for backend in BACKENDS}
