"""Depthwise 3x3 convolutions on a CPU: `depthwise.cpp`, part of the library that `cpu.py` compiles at first use."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from . import cpu
from .dispatch import TensorProblem

_INTS = 'batch height width channels activation threads x_b x_y x_x'
_POINTERS = 'x weight bias out gomp_parallel'
_PRODUCTS_PER_THREAD = 1 << 18  # fewer take less time than waking another thread
ACTIVATIONS = ('none', 'gelu', 'silu')


class Depthwise(ctypes.Structure):
    """`struct Depthwise` of the C++ source, field by field."""

    _fields_ = cpu.fields(_INTS, _POINTERS)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = cpu.library()
    cpu.bind(library, Depthwise, 'depthwise_size', 'depthwise')
    return library


def refuse(problem: TensorProblem) -> str:
    """Why the library can't serve `problem`; '' if it can. Compiles it at the first call."""
    return cpu.refuse(problem)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The map (B, H, W, C), convolved with (C, 1, 3, 3) and activated; all of it fp32."""
    batch, height, width, channels = x.shape
    x = x if x.stride(-1) == 1 or channels == 1 else x.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    out = x.new_empty(x.shape)
    threads = max(1, min(torch.get_num_threads(), 9 * x.numel() // _PRODUCTS_PER_THREAD))
    call = Depthwise(
        batch, height, width, channels, ACTIVATIONS.index(activation), threads, *x.stride()[:3],
        x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(), cpu.gomp_parallel(),
    )  # fmt: skip
    _library().visionssm_depthwise(ctypes.byref(call))
    return out
