"""What the operators count as in `torch.utils.flop_counter`: two operations per multiply-add, shapes for tensors.

Neighbourhood attention by the K * K keys of each query; the scan as 9 B L K D N multiply-adds, and B L K D for each of
skip and gate (arXiv:2401.10166, appendix, after state-spaces/mamba issue 110). A gradient is twice what it is of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from . import neighborhood, products, selective_scan  # noqa: F401  they define the operators

_ops = torch.ops.visionssm


def _count_scan(u, delta, A, B, C, D, z, delta_bias, order) -> int:
    batch, length, directions, states = B
    steps = length if order is None else order[1]
    return 2 * batch * steps * directions * u[-1] * (9 * states + (D is not None) + (z is not None))


@register_flop_formula(_ops.selective_scan)
def _scan(*args, **kwargs) -> int:
    return _count_scan(*args[:9])


@register_flop_formula(_ops.selective_scan_backward)
def _scan_backward(grad_out, grad_state, starts, *args, **kwargs) -> int:
    return 2 * _count_scan(*args[:9])


@register_flop_formula(_ops.na_qk)
def _na_qk(q, k, window, *args, **kwargs) -> int:
    return 2 * math.prod(q) * window**2


@register_flop_formula([_ops.na_av, _ops.na_av_transposed])
def _na_av(attn, v, window, *args, **kwargs) -> int:
    return 2 * math.prod(v) * window**2


@register_flop_formula(_ops.linear)
def _linear(x, weight, *args, **kwargs) -> int:
    return 2 * math.prod(x) * weight[0]


def trace_handles() -> dict[str, Callable[[Sequence[Any], Sequence[Any]], float]]:
    """Multiply-adds of our operators in a trace of TorchScript, by the operator's name.

    For counters that read traces, fvcore's `FlopCountAnalysis` and mmengine's `FlopAnalyzer`:
    `set_op_handle(**trace_handles())`.

    Returns:
        Functions of the values that an operator takes and gives.
    """
    names = ('selective_scan', 'na_qk', 'na_av', 'na_av_transposed')
    return {f'visionssm::{name}': partial(_count_traced, getattr(_ops, name)) for name in names}


def _count_traced(operator: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    plain = [value.type().sizes() if value.isCompleteTensor() else value.toIValue() for value in inputs]
    return flop_registry[operator](*plain) / 2
