"""Neighbourhood attention on 2-D maps: NATTEN's semantics in plain torch, NATTEN itself where it serves.

Along an axis of length L, with window K (odd) and dilation e, position i belongs to the class r = i mod e and is its
element p = i div e; the class has ceil((L - r) / e) elements. Keys are K neighbours in the class, centred on p and
shifted inwards at borders; in two dimensions they are the product of the axes, rows first. L >= K * e is needed.

The torch form works on whole rows: all columns of the K key rows of a query row in one matrix product, from which the
K columns of each query are picked (or, for values, into which they are put). That is W / K times the arithmetic that
is needed and far faster than gathering K * K keys per query.

NATTEN (0.17; 0.20 dropped these functions) is used for CUDA tensors if it is installed. `backend=` or the environment
variable `VISIONSSM_NEIGHBORHOOD_BACKEND` name `torch` or `natten`, which then has to work.

Source: arXiv:2204.07143 (NAT), arXiv:2209.15001 (DiNAT).
"""

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from timm.layers import register_notrace_function
from torch import Tensor

_logger = logging.getLogger(__name__)

BACKENDS = ('natten', 'torch')
_VARIABLE = 'VISIONSSM_NEIGHBORHOOD_BACKEND'


@torch.fx.wrap
@register_notrace_function
def na_qk(q: Tensor, k: Tensor, window: int, dilation: list[int], backend: str | None = None) -> Tensor:
    """Products of every query with the keys of its neighbourhood.

    Args:
        q: Queries, scaled, (B, heads, H, W, C), any strides.
        k: Keys, (B, heads, H, W, C), dtype of `q`.
        window: Keys per axis K, odd.
        dilation: Distance between neighbouring keys along H and W.
        backend: 'natten', 'torch' or None: as the module's docstring says.

    Returns:
        Logits, (B, heads, H, W, K * K).

    Raises:
        ValueError: If the shapes differ, the window is even, or a side is shorter than window * dilation.
        RuntimeError: If NATTEN was asked for and cannot be used.
    """
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
        natten = _natten_for(q, backend)
        if natten is not None:
            return natten.na2d_qk(q.contiguous(), k.contiguous(), window, tuple(dilation))
    return torch.ops.visionssm.na_qk(q, k, window, dilation)


@torch.fx.wrap
@register_notrace_function
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
        RuntimeError: As `na_qk`.
    """
    attn = attn.to(v.dtype)
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
        natten = _natten_for(v, backend)
        if natten is not None:
            return natten.na2d_av(attn.contiguous(), v.contiguous(), window, tuple(dilation))
    return torch.ops.visionssm.na_av(attn, v, window, dilation)


@torch.fx.wrap
@register_notrace_function
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
    rows = torch.ops.visionssm.neighbors(height, window, dilation[0], table.detach())[1]
    columns = torch.ops.visionssm.neighbors(width, window, dilation[1], table.detach())[1]
    bias = table.index_select(1, rows.flatten()).index_select(2, columns.flatten())  # [heads, H K, W K]
    return bias.unflatten(1, (height, window)).unflatten(3, (width, window)).transpose(2, 3).flatten(3)


@lru_cache(maxsize=64)
def _neighbors(length: int, window: int, dilation: int, device: torch.device) -> Tensor:
    if window < 1 or window % 2 == 0:
        raise ValueError(f'window is {window}; it must be odd')
    if dilation < 1 or length < window * dilation:
        raise ValueError(
            f'a side of {length} with window {window} and dilation {dilation}: it must be at least their product, and '
            'the dilation at least 1'
        )
    i = np.arange(length)
    residue, p = i % dilation, i // dilation
    in_class = (length - residue + dilation - 1) // dilation
    start = np.clip(p - window // 2, 0, in_class - window)
    steps = np.arange(window)
    keys = residue[:, None] + dilation * (start[:, None] + steps)
    bias = (start - p + window - 1)[:, None] + steps
    with torch.inference_mode(False):  # the table outlives the call
        return torch.tensor(np.stack([keys, bias]), device=device)


@torch.library.custom_op('visionssm::neighbors', mutates_args=())
def _neighbors_op(length: int, window: int, dilation: int, like: Tensor) -> Tensor:
    """Positions of the keys, and rows of the bias table, of every query along an axis: (2, L, K) int64."""
    # a custom op may not hand out the same memory twice: the compiler may write into what it got
    return _neighbors(length, window, dilation, like.device).clone()


@_neighbors_op.register_fake
def _neighbors_fake(length, window, dilation, like):
    return like.new_empty((2, length, window), dtype=torch.int64)


class _Rows:
    """A stack of R = B * heads * H rows of W positions: which key rows and columns each query sees, in parts."""

    def __init__(self, x: Tensor, window: int, dilation: Sequence[int]) -> None:
        batch, heads, height, width = x.shape[:4]
        rows = _neighbors(height, window, dilation[0], x.device)[0]
        first = torch.arange(0, batch * heads * height, height, device=x.device)
        self.key_rows = (first[:, None, None] + rows).flatten(0, 1)  # [R, K]
        self.columns = _neighbors(width, window, dilation[1], x.device)[0].unsqueeze(1)  # [W, 1, K]
        self.window, self.width = window, width

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their key rows; a part's products fit the cache, or 256 MiB on a GPU."""
        count = (1 << 19 if self.key_rows.device.type == 'cpu' else 1 << 26) // (self.window * self.width**2)
        for begin in range(0, len(self.key_rows), max(count, 1)):
            part = slice(begin, begin + max(count, 1))
            yield part, self.key_rows[part]

    def take(self, tokens: Tensor, key_rows: Tensor) -> Tensor:
        """All positions of the key rows of a part, (R, K * W, C)."""
        taken = tokens.index_select(0, key_rows.flatten())  # copies whole rows, unlike indexing
        return taken.view(len(key_rows), -1, tokens.shape[2])

    def pick(self, products: Tensor) -> Tensor:
        """Of (R, W, K * W) products with whole rows, those with the K columns of each query: (R, W, K, K)."""
        index = self.columns.expand(len(products), -1, self.window, -1)
        return products.unflatten(2, (self.window, self.width)).gather(3, index)

    def spread(self, attn: Tensor) -> Tensor:
        """The transpose of `pick`: (R, W, K * K) weights to (R, W, K * W), 0 elsewhere."""
        attn = attn.unflatten(2, (self.window, self.window))
        index = self.columns.expand(len(attn), -1, self.window, -1)
        return attn.new_zeros(*attn.shape[:3], self.width).scatter_(3, index, attn).flatten(2)


def _check(x: Tensor, other: Tensor, channels: int) -> None:
    if x.ndim != 5 or other.shape != (*x.shape[:4], channels):
        raise ValueError(
            f'shapes are {tuple(x.shape)} and {tuple(other.shape)}; expected are (B, heads, H, W, C), and the same '
            f'with {channels} last'
        )


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)  # the op's result has the dtype of its input


@torch.library.custom_op('visionssm::na_qk', mutates_args=())
def _na_qk_op(q: Tensor, k: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    _check(q, k, q.shape[-1])
    rows = _Rows(q, window, dilation)
    queries, keys = q.flatten(0, 2), k.flatten(0, 2)
    out = q.new_empty(*queries.shape[:2], window, window)
    with _no_autocast(q):
        for part, key_rows in rows.parts():
            products = torch.bmm(queries[part], rows.take(keys, key_rows).transpose(1, 2))
            out[part] = rows.pick(products)
    return out.view(*q.shape[:4], window * window)


@torch.library.custom_op('visionssm::na_av', mutates_args=())
def _na_av_op(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    _check(v, attn, window * window)
    rows = _Rows(v, window, dilation)
    weights, values = attn.flatten(0, 2), v.flatten(0, 2)
    out = v.new_empty(values.shape)
    with _no_autocast(v):
        for part, key_rows in rows.parts():
            out[part] = torch.bmm(rows.spread(weights[part]), rows.take(values, key_rows))
    return out.view(v.shape)


@torch.library.custom_op('visionssm::na_av_transposed', mutates_args=())
def _na_av_transposed_op(attn: Tensor, x: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """Every position's `x` times its weights, added to the positions that the weights are for; shapes as `na_av`."""
    rows = _Rows(x, window, dilation)
    weights, tokens = attn.flatten(0, 2), x.flatten(0, 2)
    # half precision would lose small terms in sums over a window
    out = torch.zeros_like(
        tokens, dtype=torch.promote_types(x.dtype, torch.float32), memory_format=torch.contiguous_format
    )
    with _no_autocast(x):
        for part, key_rows in rows.parts():
            terms = torch.bmm(rows.spread(weights[part]).transpose(1, 2), tokens[part])
            out.index_add_(0, key_rows.flatten(), terms.unflatten(1, (window, -1)).flatten(0, 1).to(out.dtype))
    return out.to(x.dtype).view(x.shape)


@_na_qk_op.register_fake
def _na_qk_fake(q, k, window, dilation):
    return q.new_empty((*q.shape[:4], window * window))


@_na_av_op.register_fake
@_na_av_transposed_op.register_fake
def _na_av_fake(attn, v, window, dilation):
    return v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:
    first, second, ctx.window, ctx.dilation = inputs
    ctx.save_for_backward(first, second)


def _na_qk_backward(ctx, grad: Tensor):
    q, k = ctx.saved_tensors
    ops, needs = torch.ops.visionssm, ctx.needs_input_grad
    grad_q = ops.na_av(grad, k, ctx.window, ctx.dilation) if needs[0] else None
    grad_k = ops.na_av_transposed(grad, q, ctx.window, ctx.dilation) if needs[1] else None
    return grad_q, grad_k, None, None


def _na_av_backward(ctx, grad: Tensor):
    attn, v = ctx.saved_tensors
    ops, needs = torch.ops.visionssm, ctx.needs_input_grad
    grad_attn = ops.na_qk(grad, v, ctx.window, ctx.dilation) if needs[0] else None
    grad_v = ops.na_av_transposed(attn, grad, ctx.window, ctx.dilation) if needs[1] else None
    return grad_attn, grad_v, None, None


_na_qk_op.register_autograd(_na_qk_backward, setup_context=_setup_context)
_na_av_op.register_autograd(_na_av_backward, setup_context=_setup_context)


@lru_cache(maxsize=1)
def _load_natten() -> tuple[ModuleType | None, str]:
    """NATTEN's functions, or why there are none."""
    try:
        functional = importlib.import_module('natten.functional')
    except ImportError as error:
        return None, f'natten cannot be imported: {error}'
    if not (hasattr(functional, 'na2d_qk') and hasattr(functional, 'na2d_av')):
        return None, 'the natten that is installed has no na2d_qk and na2d_av: 0.17 has, 0.20 dropped them'
    _logger.info('neighbourhood attention of CUDA tensors runs in natten')
    return functional, ''


def _natten_for(x: Tensor, backend: str | None) -> ModuleType | None:
    """NATTEN's functions if they are to be used for `x`.

    By itself that is for CUDA alone: on CPUs NATTEN has plain loops, and nothing else has kernels.
    """
    name = backend or os.environ.get(_VARIABLE) or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f'neighbourhood attention backend is {name!r}; allowed are {", ".join(BACKENDS)}')
    if name == 'torch' or (name is None and x.device.type != 'cuda'):
        return None
    functional, reason = _load_natten()
    if functional is None and name == 'natten':
        raise RuntimeError(f'the backend natten was asked for: {reason}')
    return functional
