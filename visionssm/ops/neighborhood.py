"""Neighbourhood attention on 2-D maps, with NATTEN's semantics.

Along an axis of length L, with window K (odd) and dilation e, position i belongs to the class r = i mod e and is its
element p = i div e; the class has ceil((L - r) / e) elements. Keys are K neighbours in the class, centred on p and
shifted inwards at borders; in two dimensions they are the product of the axes, rows first. L >= K * e is needed.

Products with keys, sums of values and the transpose of the latter are each linear in either argument, and their
derivatives are one another.

Source: arXiv:2204.07143 (NAT), arXiv:2209.15001 (DiNAT).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import replacing
from .dispatch import TensorProblem, requested_backend, resolve
from .export import wants_plain
from .rows import na_av_by_formula, na_qk_by_formula, neighbors, neighbors_by_formula
from .transforms import differentiable, in_front, is_unwatched, run


def na_qk(q: Tensor, k: Tensor, window: int, dilation: list[int], backend: str | None = None) -> Tensor:
    """Products of every query with the keys of its neighbourhood.

    Args:
        q: Queries, scaled, (B, heads, H, W, C), any strides.
        k: Keys, (B, heads, H, W, C), dtype of `q`.
        window: Keys per axis K, odd.
        dilation: Distance between neighbouring keys along H and W.
        backend: natten, cpu or torch; None: `use_backend`, the environment, or the first that can.

    Returns:
        Logits, (B, heads, H, W, K * K).

    Raises:
        ValueError: If the shapes differ, the window is even, or a side is shorter than window * dilation.
        BackendUnavailableError: If NATTEN was asked for and cannot be used.
    """
    if not torch.jit.is_scripting():
        if wants_plain():
            return na_qk_by_formula(q, k, window, dilation)
        with replacing.paused(q, k):
            _check_kinds(q, k)
            return _na_qk(q, k, window, dilation, _asked(backend))
    return torch.ops.visionssm.na_qk(q, k, window, dilation)


def na_weights(q: Tensor, k: Tensor, table: Tensor, dilation: list[int]) -> Tensor:
    """Softmax of `na_qk` with the bias of `na_bias`, in one pass at inference on a CPU.

    Args:
        q: Queries, scaled, (B, heads, H, W, C), any strides.
        k: Keys, (B, heads, H, W, C), dtype of `q`.
        table: Bias by key position minus query position, in steps of the dilation, (heads, 2 K - 1, 2 K - 1).
        dilation: Distance between neighbouring keys along H and W.

    Returns:
        (B, heads, H, W, K * K).

    Raises:
        ValueError: As `na_qk`.
        BackendUnavailableError: As `na_qk`.
    """
    window = (table.shape[1] + 1) // 2
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        with replacing.paused(q, k, table):
            if is_unwatched(q, k, table) and q.dtype == k.dtype == table.dtype == torch.float32:
                _check(q, k, q.shape[-1])
                if table.shape != (q.shape[1], 2 * window - 1, 2 * window - 1):
                    raise ValueError(f'the table is {tuple(table.shape)}, and q {tuple(q.shape)}')
                module = _module(q, '')
                if hasattr(module, 'na_weights'):
                    return run('na_weights', module.na_weights, q, k, table, dilation)
    logits = na_qk(q, k, window, dilation) + na_bias(table, q.shape[2], q.shape[3], dilation)
    return logits.softmax(-1)


def na_av(attn: Tensor, v: Tensor, window: int, dilation: list[int], backend: str | None = None) -> Tensor:
    """Sums over every neighbourhood of values times weights.

    Args:
        attn: Weights, (B, heads, H, W, K * K).
        v: Values, (B, heads, H, W, C), any strides.
        window: Keys per axis K, odd.
        dilation: Distance between neighbouring keys along H and W.
        backend: As for `na_qk`.

    Returns:
        (B, heads, H, W, C), dtype of `v`.

    Raises:
        ValueError: As `na_qk`.
        BackendUnavailableError: As `na_qk`.
    """
    attn = attn.to(v.dtype)
    if not torch.jit.is_scripting():
        if wants_plain():
            return na_av_by_formula(attn, v, window, dilation)
        with replacing.paused(attn, v):
            _check_kinds(attn, v)
            return _na_av(attn, v, window, dilation, _asked(backend))
    return torch.ops.visionssm.na_av(attn, v, window, dilation)


def na_bias(table: Tensor, height: int, width: int, dilation: list[int]) -> Tensor:
    """The entries of a relative position bias table that go with the logits of `na_qk`.

    Args:
        table: Bias by key position minus query position, in steps of the dilation, (heads, 2 K - 1, 2 K - 1).
        height: Rows of the map.
        width: Columns of the map.
        dilation: Distance between neighbouring keys along H and W.

    Returns:
        (heads, H, W, K * K).
    """
    window = (table.shape[1] + 1) // 2
    rows = _bias_rows(height, window, dilation[0], table)
    columns = _bias_rows(width, window, dilation[1], table)
    bias = table.index_select(1, rows.flatten()).index_select(2, columns.flatten())  # [heads, H K, W K]
    return bias.unflatten(1, (height, window)).unflatten(3, (width, window)).transpose(2, 3).flatten(3)


def _bias_rows(length: int, window: int, dilation: int, table: Tensor) -> Tensor:
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if wants_plain():
            return neighbors_by_formula(length, window, dilation, table.device)[1]
    return torch.ops.visionssm.neighbors(length, window, dilation, table.detach())[1]


def _asked(backend: str | None) -> str:
    # compiled code can't read the context; the op does when it runs
    return backend or '' if torch.compiler.is_compiling() else requested_backend('neighborhood', backend)


def _module(x: Tensor, backend: str) -> ModuleType:
    name = backend or requested_backend('neighborhood')
    return resolve('neighborhood', name, TensorProblem(x.device.type, x.dtype))


def _check(x: Tensor, other: Tensor, channels: int) -> None:
    if x.ndim != 5 or other.shape != (*x.shape[:4], channels):
        raise ValueError(
            f'shapes are {tuple(x.shape)} and {tuple(other.shape)}; expected are (B, heads, H, W, C), and the same '
            f'with {channels} last'
        )


def _check_kinds(x: Tensor, other: Tensor) -> None:
    if x.dtype != other.dtype or x.device != other.device:
        raise ValueError(f'tensors are {x.dtype} on {x.device} and {other.dtype} on {other.device}; both must be alike')
    if not x.is_floating_point():
        raise TypeError(f'tensors are {x.dtype}; allowed are floating-point ones')


@torch.library.custom_op('visionssm::neighbors', mutates_args=())
def _neighbors_op(length: int, window: int, dilation: int, like: Tensor) -> Tensor:
    """Positions of the keys, and rows of the bias table, of every query along an axis: (2, L, K) int64."""
    # a custom op may not hand out the same memory twice: the compiler may write into what it got
    return neighbors(length, window, dilation, like.device).clone()


@_neighbors_op.register_fake
def _neighbors_fake(length, window, dilation, like):
    return like.new_empty((2, length, window), dtype=torch.int64)


@_neighbors_op.register_vmap
def _neighbors_vmap(info, dims, length, window, dilation, like):
    return torch.ops.visionssm.neighbors(length, window, dilation, like.select(dims[3], 0)), None


@torch.library.custom_op('visionssm::na_qk', mutates_args=())
def _na_qk_op(q: Tensor, k: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    _check(q, k, q.shape[-1])
    return _module(q, backend).na_qk(q, k, window, dilation)


@torch.library.custom_op('visionssm::na_av', mutates_args=())
def _na_av_op(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    _check(v, attn, window * window)
    return _module(v, backend).na_av(attn, v, window, dilation)


@torch.library.custom_op('visionssm::na_av_transposed', mutates_args=())
def _na_av_transposed_op(attn: Tensor, x: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    """Every position's `x` times its weights, added to the positions that the weights are for; shapes as `na_av`."""
    _check(x, attn, window * window)
    return _module(x, backend).na_av_transposed(attn, x, window, dilation)


@_na_qk_op.register_fake
def _na_qk_fake(q, k, window, dilation, backend=''):
    return q.new_empty((*q.shape[:4], window * window))


@_na_av_op.register_fake
@_na_av_transposed_op.register_fake
def _na_av_fake(attn, v, window, dilation, backend=''):
    return v.new_empty(v.shape)


def _na_qk_backward(inputs, grads, needs):
    q, k, *rest = inputs
    return (
        _na_av(grads[0], k, *rest) if needs[0] else None,
        _na_av_transposed(grads[0], q, *rest) if needs[1] else None,
    )


def _na_av_backward(inputs, grads, needs):
    attn, v, *rest = inputs
    return (
        _na_qk(grads[0], v, *rest) if needs[0] else None,
        _na_av_transposed(attn, grads[0], *rest) if needs[1] else None,
    )


def _na_av_transposed_backward(inputs, grads, needs):
    attn, x, *rest = inputs
    return (
        _na_qk(x, grads[0], *rest) if needs[0] else None,
        _na_av(attn, grads[0], *rest) if needs[1] else None,
    )


def _bilinear(op, backward):
    """The function of an op that is linear in its first two arguments."""

    def jvp(inputs, tangents):
        first, second, *rest = inputs
        terms = []
        if tangents[0] is not None:
            terms.append(call(tangents[0], second, *rest))
        if tangents[1] is not None:
            terms.append(call(first, tangents[1], *rest))
        return (sum(terms[1:], terms[0]),)

    def batch(call, size, dims, inputs):
        pair = (in_front(x, dim, size).flatten(0, 1) for x, dim in zip(inputs[:2], dims, strict=False))
        out = call(*pair, *inputs[2:])
        return out.unflatten(0, (size, out.shape[0] // size))

    call = differentiable(op, backward=backward, jvp=jvp, batch=batch)
    return call


_na_qk = _bilinear(_na_qk_op, _na_qk_backward)
_na_av = _bilinear(_na_av_op, _na_av_backward)
_na_av_transposed = _bilinear(_na_av_transposed_op, _na_av_transposed_backward)
