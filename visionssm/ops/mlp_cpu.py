"""MLPs on a CPU: `mlp.cpp`, part of the library that `cpu.py` compiles at first use."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from . import cpu
from .dispatch import TensorProblem

_INTS = 'rows inputs hidden outputs threads'
_POINTERS = 'x first first_bias second second_bias out gomp_parallel'


class Mlp(ctypes.Structure):
    """`struct Mlp` of the C++ source, field by field."""

    _fields_ = [(name, ctypes.c_int64) for name in _INTS.split()] + [
        (name, ctypes.c_void_p) for name in _POINTERS.split()
    ]


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = cpu.library()
    cpu.bind(library, Mlp, 'mlp_size', 'mlp')
    return library


def refuse(problem: TensorProblem) -> str:
    """Why the library can't serve `problem`; '' if it can. Compiles it at the first call."""
    return cpu.refuse(problem)


def mlp(x: Tensor, first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None) -> Tensor:
    """`F.linear(F.gelu(F.linear(x, first, first_bias)), second, second_bias)`, all of it fp32.

    Raises:
        CompileError: If there is no library.
        MemoryError: If working memory is short.
    """
    tensors = [None if t is None else t.contiguous() for t in (x, first, first_bias, second, second_bias)]
    out = x.new_empty(*x.shape[:-1], second.shape[0])
    call = Mlp(
        x.numel() // x.shape[-1], x.shape[-1], first.shape[0], second.shape[0], torch.get_num_threads(),
        *(None if t is None else t.data_ptr() for t in tensors), out.data_ptr(), cpu.gomp_parallel(),
    )  # fmt: skip
    if _library().visionssm_mlp(ctypes.byref(call)):
        raise MemoryError('the MLP could not get its working memory')
    return out
