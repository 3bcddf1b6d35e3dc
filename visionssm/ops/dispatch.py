"""Which backend runs an op: explicit argument > `use_backend` > environment > automatic, by tensor.

A backend is a module, and one line of `BACKENDS`. What the module offers depends on the op:

    scan            forward(inputs) -> (output, last state) and backward(grads, inputs) -> one gradient per tensor;
                    if `KEEPS_STARTS`, forward may return the states before every chunk, too, and backward takes them;
                    if `CHECKS_POSITIONS`, forward raises at orders that visit what is not there;
                    if `PROJECTS_STEPS`, it takes steps of low rank and what they are to be multiplied by
    neighborhood    na_qk, na_av and na_av_transposed, as the operators of those names in `neighborhood.py`
    linear          linear(x, weight, bias)

and, if there is anything that it can't serve, `refuse(problem)`: why not, or ''. Automatic choice takes the first
backend that does not refuse; the last of every op never does. A backend that is asked for by name and refuses raises.
A refusal in automatic mode is logged once with its reason.

A request is a backend's name, which goes for every op that has a backend of that name, or `op=name`, or several of
either with commas between them: `torch`, `scan=cpu`, `scan=cpu,linear=torch`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple, Protocol

import torch

_logger = logging.getLogger('visionssm.ops')


class Problem(Protocol):
    """What backends accept or refuse by: at least device type and dtype; hashable."""

    @property
    def device(self) -> str:
        """Device type."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens."""


class TensorProblem(NamedTuple):
    """A problem that is fully told by where its tensors are and what they hold."""

    device: str
    dtype: torch.dtype


class ScanProblem(NamedTuple):
    """A scan: device type and dtype of the tokens, d_state, steps, window (0: none)."""

    device: str
    dtype: torch.dtype
    d_state: int
    steps: int
    window: int


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        op: The op: 'scan', 'neighborhood' or 'linear'.
        name: What it is asked for by.
        module: Where it is; imported at first use.
        devices: Device types that it serves; empty: all.
        description: What it is.
        automatic: Device types that it is taken for without being asked for; None: all that it serves.
    """

    op: str
    name: str
    module: str
    devices: tuple[str, ...]
    description: str
    automatic: tuple[str, ...] | None = None

    def refuses(self, problem: Problem) -> str:
        """Why it can't serve `problem`; '' if it can."""
        if self.devices and problem.device not in self.devices:
            return f'it serves {" and ".join(self.devices)} tensors, these are on {problem.device}'
        try:
            module = self.load()
        except ImportError as error:
            return f'{self.module} cannot be imported ({error})'
        refuse = getattr(module, 'refuse', None)
        return refuse(problem) if refuse else ''

    def is_automatic(self, device: str) -> bool:
        """Whether it is taken for tensors on `device` without being asked for."""
        return self.automatic is None or device in self.automatic

    def load(self) -> ModuleType:
        """Its module."""
        return importlib.import_module(self.module)


BACKENDS = (
    Backend('scan', 'triton', 'visionssm_kernels.selective_scan', ('cuda',), 'fused GPU kernels'),
    Backend('scan', 'cpu', 'visionssm.ops.cpu', ('cpu',), "C++, built by the machine's own compiler"),
    Backend('scan', 'torch', 'visionssm.ops.chunked', (), 'vectorised torch'),
    Backend('scan', 'reference', 'visionssm.ops.reference', (), 'sequential loop, the definition', automatic=()),
    Backend('neighborhood', 'natten', 'visionssm.ops.natten', (), 'NATTEN 0.17', automatic=('cuda',)),
    Backend('neighborhood', 'cpu', 'visionssm.ops.attention_cpu', ('cpu',), "C++, built by the machine's own compiler"),
    Backend('neighborhood', 'torch', 'visionssm.ops.rows', (), 'products with whole rows of keys'),
    Backend('linear', 'onednn', 'visionssm.ops.onednn', ('cpu',), "oneDNN's fp32 product"),
    Backend('linear', 'torch', 'torch.nn.functional', (), "torch's own product"),
)
OPS = tuple(dict.fromkeys(backend.op for backend in BACKENDS))
_BY_NAME = {(backend.op, backend.name): backend for backend in BACKENDS}
_ENVIRONMENT = 'VISIONSSM_BACKEND'
_OWN_VARIABLE = {'neighborhood': 'VISIONSSM_NEIGHBORHOOD_BACKEND'}
_override: ContextVar[Mapping[str, str]] = ContextVar('visionssm_backend', default={})  # noqa: B039  never written to


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and can't serve: the message says why."""


def backend_names(op: str | None = None) -> list[str]:
    """Names of the backends of `op`, in the order in which they are tried; None: of all ops."""
    return list(dict.fromkeys(backend.name for backend in BACKENDS if op in (None, backend.op)))


@lru_cache(maxsize=256)
def parse_request(text: str, origin: str) -> Mapping[str, str]:
    """The backend's name per op that `text` asks for.

    Args:
        text: As the docstring of this module says; '' asks for nothing.
        origin: Where it comes from, for messages.

    Raises:
        ValueError: If a name is unknown, or an op is told twice; the message has the choices.
    """
    bare: dict[str, str] = {}
    told: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(','))):
        op, equals, name = (word.strip() for word in part.rpartition('='))
        if equals and op not in OPS:
            raise ValueError(f'{origin}: unknown op {op!r}; choose from {", ".join(OPS)}')
        ops = [op] if equals else [op for op in OPS if (op, name) in _BY_NAME]
        if not ops or (ops[0], name) not in _BY_NAME:
            choices = ', '.join(backend_names(op or None))
            raise ValueError(f'{origin}: unknown backend {name!r}{op and f" of {op}"}; choose from {choices}')
        for one in ops:
            known = (told if equals else bare).setdefault(one, name)
            if known != name:
                raise ValueError(f'{origin}: both {known} and {name} are asked for {one}; choose one')
    return {**bare, **told}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run ops inside the `with` block on the backends that `name` asks for.

    Args:
        name: A backend: triton, cpu, torch, reference, natten or onednn, for every op that has one of that name; or
            `op=name` for one op (scan, neighborhood, linear); or several with commas between them. What it does not
            speak of stays as it is outside.

    Raises:
        ValueError: If there is no such backend.
        BackendUnavailableError: At the first call, if the backend can't serve its tensors.
    """
    request = parse_request(name, 'use_backend')
    if not request:
        raise ValueError(f'use_backend: no backend named; choose from {", ".join(backend_names())}')
    token = _override.set({**_override.get(), **request})
    try:
        yield
    finally:
        _override.reset(token)


def requested_backend(op: str, explicit: str | None = None) -> str:
    """The backend of `op` that is asked for by argument, context or environment; '' for automatic."""
    if explicit:
        if (op, explicit) not in _BY_NAME:
            raise ValueError(f'backend: unknown backend {explicit!r}; choose from {", ".join(backend_names(op))}')
        return explicit
    if name := _override.get().get(op):
        return name
    if (variable := _OWN_VARIABLE.get(op)) and (name := os.environ.get(variable)):
        if (op, name) not in _BY_NAME:
            raise ValueError(f'{variable}: unknown backend {name!r}; choose from {", ".join(backend_names(op))}')
        return name
    text = os.environ.get(_ENVIRONMENT)
    return parse_request(text, _ENVIRONMENT).get(op, '') if text else ''


class Temporary(str):
    """A reason to refuse that may pass: the next call asks again."""


class _UnsettledError(Exception):
    """The module that is taken for now; raised, as only what is returned is remembered."""


def resolve(op: str, name: str, problem: Problem) -> ModuleType:
    """The module that runs `problem`: the backend `name`, or the first that accepts if `name` is ''."""
    try:
        return _settled(op, name, problem)
    except _UnsettledError as error:
        return error.args[0]


@lru_cache(maxsize=4096)
def _settled(op: str, name: str, problem: Problem) -> ModuleType:
    if name:
        backend = _BY_NAME[op, name]
        if reason := backend.refuses(problem):
            raise BackendUnavailableError(f'backend {name!r} was asked for and cannot run this {op}: {reason}')
        return backend.load()
    settled = True
    for backend in BACKENDS:
        if backend.op != op or not backend.is_automatic(problem.device):
            continue
        reason = backend.refuses(problem)
        if not reason and settled:
            return backend.load()
        if not reason:
            raise _UnsettledError(backend.load())
        settled &= not isinstance(reason, Temporary)
        _explain_once(backend, problem.device, reason)
    raise BackendUnavailableError(f'no backend accepts {problem}')


resolve.cache_clear = _settled.cache_clear  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _explain_once(backend: Backend, device: str, reason: str) -> None:
    # a scan on a device that the backend is meant for falls to a much slower one: worth a warning
    missed = backend.op == 'scan' and device in backend.devices and 'float64' not in reason
    level = logging.WARNING if missed else logging.INFO
    _logger.log(level, '%s backend %r not used for %s tensors: %s', backend.op, backend.name, device, reason)


def available_backends(
    device: str | torch.device = 'cpu', dtype: torch.dtype = torch.float32, op: str = 'scan'
) -> dict[str, str]:
    """Every backend of `op` and why it would refuse `dtype` tensors on `device`; '' means that it would run.

    Automatic choice takes the first that would run, `reference` and, on CPUs, `natten` excepted: they are only used
    when asked for.

    Args:
        device: Where the tensors are.
        dtype: What they hold.
        op: 'scan', 'neighborhood' or 'linear'.

    Raises:
        ValueError: If there is no such op.
    """
    if op not in OPS:
        raise ValueError(f'unknown op {op!r}; choose from {", ".join(OPS)}')
    kind = torch.device(device).type
    problem = ScanProblem(kind, dtype, 16, 64, 0) if op == 'scan' else TensorProblem(kind, dtype)
    return {backend.name: backend.refuses(problem) for backend in BACKENDS if backend.op == op}
