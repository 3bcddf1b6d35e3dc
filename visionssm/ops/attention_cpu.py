"""Neighbourhood attention on a CPU: `neighborhood.cpp`, part of the library that `cpu.py` compiles at first use."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import cpu
from .dispatch import TensorProblem
from .rows import neighbors

_INTS = 'batch heads height width channels window dilation_y dilation_x dtype threads'
_STRIDES = 'first_b first_h first_y first_x second_b second_h second_y second_x'
_PRODUCTS_PER_THREAD = 1 << 18  # fewer take less time than waking another thread


class Attention(ctypes.Structure):
    """`struct Attention` of the C++ source, field by field."""

    _fields_ = cpu.fields(_INTS, 'first second', _STRIDES, 'out bias gomp_parallel')


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = cpu.library()
    cpu.bind(library, Attention, 'attention_size', 'na_qk', 'na_av', 'na_av_transposed')
    return library


def refuse(problem: TensorProblem) -> str:
    """Why this backend can't serve `problem`; '' if it can. Compiles the kernel at the first call."""
    return cpu.refuse(problem)


def _run(
    name: str, first: Tensor, second: Tensor, window: int, dilation: Sequence[int], bias: Tensor | None = None
) -> Tensor:
    batch, heads, height, width, channels = second.shape
    for length, step in zip((height, width), dilation, strict=True):
        neighbors(length, window, step, torch.device('cpu'))  # raises where there are too few positions
    out = second.new_empty(batch, heads, height, width, window * window if name == 'na_qk' else channels)
    first, second = (x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in (first, second))
    products = out[..., 0].numel() * window * window * channels
    threads = max(1, min(torch.get_num_threads(), products // _PRODUCTS_PER_THREAD))
    call = Attention(
        batch, heads, height, width, channels, window, *dilation, cpu.DTYPES[second.dtype], threads,
        first.data_ptr(), second.data_ptr(), *first.stride()[:4], *second.stride()[:4],
        out.data_ptr(), None if bias is None else bias.data_ptr(), cpu.gomp_parallel(),
    )  # fmt: skip
    if getattr(_library(), f'visionssm_{name}')(ctypes.byref(call)):
        raise MemoryError('neighbourhood attention could not get its working memory')
    return out


def na_qk(q: Tensor, k: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    return _run('na_qk', q, k, window, dilation)


def na_weights(q: Tensor, k: Tensor, table: Tensor, dilation: Sequence[int]) -> Tensor:
    """Softmax of `na_qk` with the bias of `table`, (heads, 2 K - 1, 2 K - 1); all of it fp32."""
    return _run('na_qk', q, k, (table.shape[1] + 1) // 2, dilation, table.contiguous())


def na_av(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    return _run('na_av', attn, v, window, dilation)


def na_av_transposed(attn: Tensor, x: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    return _run('na_av_transposed', attn, x, window, dilation)
