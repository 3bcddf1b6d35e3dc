"""Neighbourhood attention by NATTEN 0.17; 0.20 dropped these functions.

By itself it is taken for CUDA alone: on CPUs it has plain loops, and nothing else has kernels.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def _functions() -> tuple[ModuleType | None, str]:
    """NATTEN's functions, or why there are none."""
    try:
        functional = importlib.import_module('natten.functional')
    except ImportError as error:
        return None, f'natten cannot be imported: {error}'
    if not (hasattr(functional, 'na2d_qk') and hasattr(functional, 'na2d_av')):
        return None, 'the natten that is installed has no na2d_qk and na2d_av: 0.17 has, 0.20 dropped them'
    return functional, ''


def refuse(problem) -> str:
    """Why NATTEN can't serve; '' if it can."""
    return _functions()[1]


def na_qk(q: Tensor, k: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    return _functions()[0].na2d_qk(q.contiguous(), k.contiguous(), window, tuple(dilation))


def na_av(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    return _functions()[0].na2d_av(attn.contiguous(), v.contiguous(), window, tuple(dilation))


def na_av_transposed(attn: Tensor, x: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator: `na_av` is linear in its values, and this is its gradient there."""
    with torch.enable_grad():
        v = torch.zeros_like(x, memory_format=torch.contiguous_format).requires_grad_()
        return torch.autograd.grad(na_av(attn.detach(), v, window, dilation), v, x.contiguous())[0]
