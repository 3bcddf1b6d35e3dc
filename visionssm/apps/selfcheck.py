"""Every backend against the definition in fp64, on this machine: outputs and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from visionssm.ops import BackendUnavailableError, available_backends, selective_scan, selective_scan_ref, use_backend
from visionssm.ops.dispatch import backend_names
from visionssm.scans import get_scan
from visionssm.testing import relative_error, tolerance

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, eq=False)
class Case:
    """One problem: a grid of tokens, sizes, and what differs from the plain scan.

    Attributes:
        name: What it is there for.
        grid: Height and width of the tokens.
        channels: D.
        states: N.
        scan: Scan order; its directions are K.
        batch: Images.
        heads: Heads that share a decay rate (Mamba-2); 0: none do.
        own_inputs: Each direction sees inputs of its own.
        gate: Whether there is a `z`.
        plain_params: Parameters are taken in pixel order whatever the visiting order (PlainMamba).
        options: Further arguments of `selective_scan`.
    """

    name: str
    grid: tuple[int, int]
    channels: int
    states: int
    scan: str = 'cross'
    batch: int = 2
    heads: int = 0
    own_inputs: bool = False
    gate: bool = False
    plain_params: bool = False
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case('VMamba: four directions, one state', (7, 9), 48, 1),
    Case('Vim: two directions, 16 states, gate', (6, 6), 33, 16, 'bidirectional', gate=True),
    Case('one token', (1, 1), 5, 4, 'raster'),
    Case('one channel, 17 states', (3, 11), 1, 17, 'hilbert'),
    Case('1000 steps', (25, 40), 8, 8, 'raster', batch=1),
    Case('inputs per direction', (5, 4), 24, 8, own_inputs=True),
    Case('repeated tokens', (4, 5), 24, 8, 'multiscale'),
    Case('tokens left out', (5, 7), 16, 4, '{"name":"atrous","step":3}', gate=True),
    Case('scalar decay in heads (Mamba-2)', (5, 6), 32, 16, heads=4),
    Case('local backward windows (LBMamba)', (5, 6), 24, 8, 'raster', options={'local_window': 7}),
    Case('parameters in pixel order (PlainMamba)', (4, 6), 24, 8, 'plainmamba', plain_params=True),
    Case('directions kept apart', (6, 5), 24, 4, options={'merge': False}),
    Case('steps kept apart', (4, 4), 24, 8, 'multiscale', options={'merge': False, 'per_step': True}),
    Case('no softplus', (4, 6), 24, 8, 'snake', options={'delta_softplus': False}),
)


@dataclass
class Row:
    """The worst that one backend did in one dtype.

    Attributes:
        backend: Its name.
        dtype: Dtype of the tokens.
        cases: How many cases ran.
        output: (relative error, case) of the worst output.
        grad: (relative error, case and tensor) of the worst gradient.
        failure: Why it stopped, if it did.
    """

    backend: str
    dtype: torch.dtype
    cases: int = 0
    output: tuple[float, str] = (0.0, '')
    grad: tuple[float, str] = (0.0, '')
    failure: str = ''

    @property
    def passed(self) -> bool:
        """Whether all cases ran and are within the tolerance table."""
        within = self.output[0] <= tolerance(self.dtype) and self.grad[0] <= tolerance(self.dtype, grad=True)
        return not self.failure and within


def refusals(device: torch.device, names: Iterable[str] = ()) -> dict[str, str]:
    """Backends that are not checked on `device` and why.

    Args:
        device: Where the tensors are.
        names: Backends asked for; none: all.

    Raises:
        ValueError: If a name is unknown.
        BackendUnavailableError: If a backend that was asked for can't serve the device.
    """
    names = tuple(names)
    known = backend_names('scan')
    for name in names:
        if name not in known:
            raise ValueError(f'unknown backend {name!r}; choose from {", ".join(known)}')
    reasons = available_backends(device)
    for name in names:
        if reasons[name]:
            raise BackendUnavailableError(f'backend {name!r} cannot run on {device}: {reasons[name]}')
    return {name: reason for name, reason in reasons.items() if reason}


def check(device: torch.device, names: Iterable[str] = (), on_case: Callable[[], None] | None = None) -> Iterator[Row]:
    """Check backends that serve `device`, one row per backend and dtype that it takes.

    Args:
        device: Where to run them.
        names: Which; none: all that serve the device.
        on_case: Called after each case.

    Raises:
        ValueError: If a name is unknown.
        BackendUnavailableError: If a backend that was asked for can't serve the device.
    """
    names = tuple(names)
    refused = refusals(device, names)
    for backend in names or [name for name in backend_names('scan') if name not in refused]:
        for dtype in DTYPES:
            if device.type == 'mps' and dtype == torch.float64:  # Apple GPUs have none
                continue
            if not available_backends(device, dtype)[backend]:
                yield _check_dtype(backend, dtype, device, on_case)


def _check_dtype(backend: str, dtype: torch.dtype, device: torch.device, on_case: Callable[[], None] | None) -> Row:
    row = Row(backend, dtype)
    for case in CASES:
        expected, expected_grads = _expected(case, dtype)
        try:
            with use_backend(backend):
                out, grads = run_case(case, dtype, device, selective_scan)
        except Exception as error:  # whatever a backend raises is what this check is there to report
            row.failure = f'{case.name}: {type(error).__name__}: {" ".join(str(error).split())[:200]}'
            return row
        row.output = max(row.output, (relative_error(out, expected), case.name))
        for name, grad in grads.items():
            row.grad = max(row.grad, (relative_error(grad, expected_grads[name]), f'{case.name}: {name}'))
        row.cases += 1
        if on_case is not None:
            on_case()
    return row


@lru_cache(maxsize=len(CASES) * len(DTYPES))
def _expected(case: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    return run_case(case, dtype, torch.device('cpu'), selective_scan_ref, torch.float64)


def run_case(
    case: Case, dtype: torch.dtype, device: torch.device, scan: Callable[..., Any], work: torch.dtype | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of `case` with inputs rounded to `dtype` and then given as `work` (None: as they are)."""
    inputs, order, param_order = _inputs(case, dtype)
    inputs = {name: x.to(device, x.dtype if work is None else work).requires_grad_() for name, x in inputs.items()}
    options = {'delta_softplus': True, **case.options}
    order = order.to(device)
    if param_order is not None:
        options['param_order'] = param_order.to(device)
    expanded = inputs
    if case.heads and scan is selective_scan_ref:  # which has one rate per channel
        repeats = case.channels // case.heads
        expanded = {
            name: x.repeat_interleave(repeats, {'delta': 3, 'A': 1, 'delta_bias': 1}[name])
            if name in ('delta', 'A', 'delta_bias')
            else x
            for name, x in inputs.items()
        }
    out = scan(**expanded, order=order, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    out.backward(weights.to(device, out.dtype))
    return out.detach(), {name: x.grad for name, x in inputs.items()}


def _inputs(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    height, width = case.grid
    scan = get_scan(case.scan)
    order = torch.tensor(scan.table(height, width))
    batch, length, directions, channels = case.batch, height * width, scan.directions, case.channels
    heads = case.heads or channels
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tokens = {
        'u': normal(batch, length, directions, channels) if case.own_inputs else normal(batch, length, channels),
        # before softplus about 0.3, without it positive
        'delta': normal(batch, length, directions, heads) * 0.5 - 1
        if case.options.get('delta_softplus', True)
        else normal(batch, length, directions, heads).abs() * 0.2,
        'B': normal(batch, length, directions, case.states),
        'C': normal(batch, length, directions, case.states),
    }
    if case.gate:
        tokens['z'] = normal(batch, length, channels)
    parameters = {
        'A': -torch.exp(normal(directions, heads, 1 if case.heads else case.states) * 0.5),
        'D': normal(directions, channels),
        'delta_bias': normal(directions, heads).abs() * 0.1,
    }
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {name: x.to(dtype) for name, x in tokens.items()}
    inputs |= {name: x.to(parameter_dtype) for name, x in parameters.items()}
    param_order = None
    if case.plain_params:
        param_order = torch.arange(length, dtype=torch.int32).repeat(directions, 1)
    return inputs, order, param_order
