"""What the operators count as in `torch.utils.flop_counter`: two operations per multiply-add, shapes for tensors.

torch's attention on a CPU, for which it has no formula of its own, counts as that on CUDA.

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


_aten = torch.ops.aten
for _suffix in ('', '_backward'):
    _on_cuda, _on_cpu = (
        getattr(_aten, f'_scaled_dot_product_flash_attention{device}{_suffix}') for device in ('', '_for_cpu')
    )
    flop_registry.setdefault(_on_cpu, flop_registry[_on_cuda])

# what fvcore and mmengine count, and papers do not
_UNCOUNTED = (
    'adaptive_avg_pool2d', 'batch_norm', 'grid_sampler', 'group_norm', 'instance_norm', 'layer_norm',
    'upsample_bilinear2d', 'upsample_nearest2d',
)  # fmt: skip


def trace_handles() -> dict[str, Callable[[Sequence[Any], Sequence[Any]], float]]:
    """What operators count as in a trace of TorchScript, in multiply-adds, so that the sum is that of `visionssm list`.

    For counters that read traces, fvcore's `FlopCountAnalysis` and mmengine's `FlopAnalyzer`:
    `set_op_handle(**trace_handles())`.

    Returns:
        By the operator's name, a function of the values that it takes and gives: our operators, and attention, which
        these counters do not know; norms, pooling and resizing, which count nothing.
    """
    names = ('selective_scan', 'na_qk', 'na_av', 'na_av_transposed')
    known = {f'visionssm::{name}': partial(_count_traced, getattr(_ops, name)) for name in names}
    attention = partial(_count_traced, _aten._scaled_dot_product_flash_attention_for_cpu)
    uncounted = {f'aten::{name}': _count_nothing for name in _UNCOUNTED}  # None would leave them their own
    return {**known, 'aten::scaled_dot_product_attention': attention, **uncounted}


def _count_nothing(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    return 0.0


def _count_traced(operator: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    plain = [value.type().sizes() if value.isCompleteTensor() else value.toIValue() for value in inputs]
    return flop_registry[operator](*plain) / 2


def dispatch_handles() -> dict[Any, Callable[[Sequence[Any], Sequence[Any]], float]]:
    """Multiply-adds of all operators that torch's own counter knows, ours included.

    For `ptflops.get_model_complexity_info(..., backend='aten', custom_modules_hooks=dispatch_handles())`.

    Returns:
        By operator, a function of its arguments and of the tuple of its outputs.
    """
    return {operator: partial(_count_dispatched, formula) for operator, formula in flop_registry.items()}


def _count_dispatched(formula: Callable[..., int], inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    return formula(*inputs, out_val=outputs[0] if len(outputs) == 1 else outputs) / 2
