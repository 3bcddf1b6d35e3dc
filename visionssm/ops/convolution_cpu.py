"""Depthwise convolutions and activations on a CPU: `depthwise.cpp` of the library that `cpu.py` compiles once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import cpu
from .dispatch import TensorProblem

_INTS = 'batch height width channels activation threads rows columns top left row_step column_step mirrored shortcut'
_INTS += ' x_b x_y x_x'
_POINTERS = 'x weight bias out gomp_parallel'
_PRODUCTS_PER_THREAD = 1 << 18  # fewer take less time than waking another thread
_ACTIVATIONS_PER_THREAD = 1 << 16
ACTIVATIONS = ('none', 'gelu', 'silu')


class Depthwise(ctypes.Structure):
    """`struct Depthwise` of the C++ source, field by field."""

    _fields_ = cpu.fields(_INTS, _POINTERS)


class Activation(ctypes.Structure):
    """`struct Activation`, likewise."""

    _fields_ = cpu.fields('rows channels activation threads', 'x bias gomp_parallel')


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = cpu.library()
    cpu.bind(library, Depthwise, 'depthwise_size', 'depthwise')
    cpu.bind(library, Activation, 'activation_size', 'activation')
    return library


def refuse(problem: TensorProblem) -> str:
    """Why the library can't serve `problem`; '' if it can. Compiles it at the first call."""
    return cpu.refuse(problem)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    padding: Sequence[int],
    dilation: Sequence[int],
    mirrored: bool,
    shortcut: bool,
) -> Tensor:
    """The map (B, H, W, C), convolved with (C, 1, h, w) and activated, all of it fp32, as `depthwise_at_once` says.

    Raises:
        ValueError: If the arguments do not fit together.
        MemoryError: If there is no room for a kernel.
    """
    _check(x, weight, bias, activation, padding, dilation)
    batch, height, width, channels = x.shape
    x = x if x.stride(-1) == 1 or channels == 1 else x.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    out = x.new_empty(x.shape)
    rows, columns = weight.shape[2:]
    threads = max(1, min(torch.get_num_threads(), rows * columns * x.numel() // _PRODUCTS_PER_THREAD))
    call = Depthwise(
        batch, height, width, channels, ACTIVATIONS.index(activation), threads, rows, columns, *padding, *dilation,
        mirrored, shortcut, *x.stride()[:3],
        x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(), cpu.gomp_parallel(),
    )  # fmt: skip
    if _library().visionssm_depthwise(ctypes.byref(call)):
        raise MemoryError('the depthwise convolution could not get its working memory')
    return out


def activate(x: Tensor, bias: Tensor | None, activation: str) -> None:
    """Put the activation of x + bias in the place of x, (..., C); both are contiguous and fp32, the bias is (C,)."""
    channels, kind = x.shape[-1], ACTIVATIONS.index(activation)
    threads = max(1, min(torch.get_num_threads(), x.numel() // _ACTIVATIONS_PER_THREAD))
    address = None if bias is None else bias.data_ptr()
    call = Activation(x.numel() // channels, channels, kind, threads, x.data_ptr(), address, cpu.gomp_parallel())
    _library().visionssm_activation(ctypes.byref(call))


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, padding: Sequence[int], dilation: Sequence[int]
) -> None:
    channels = x.shape[-1:]
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[:2] != (*channels, 1) or 0 in weight.shape[2:]:
        raise ValueError(f'the map is {tuple(x.shape)} and the kernel {tuple(weight.shape)}; expected is (C, 1, h, w)')
    if bias is not None and bias.shape != channels:
        raise ValueError(f'the bias has shape {tuple(bias.shape)}; expected {tuple(channels)}')
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation is {activation!r}; allowed are {", ".join(ACTIVATIONS)}')
    spans = [step * (side - 1) for side, step in zip(weight.shape[2:], dilation, strict=False)]
    fits = all(0 <= zeros <= span for zeros, span in zip(padding, spans, strict=False))
    if len(padding) != 2 or len(dilation) != 2 or min(dilation) < 1 or not fits:
        raise ValueError(
            f'padding {tuple(padding)} and dilation {tuple(dilation)} of a kernel of {tuple(weight.shape[2:])}: the '
            f'latter is at least 1 and the former from 0 to {tuple(spans)}'
        )
