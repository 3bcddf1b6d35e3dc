"""Linear layers, depthwise convolutions, GELU and attention, by the best that serves the tensors and transforms."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import onednn, replacing
from .dispatch import TensorProblem, requested_backend, resolve
from .transforms import differentiable, is_unwatched, run, transformed

_LEAST_WORK = 1 << 21  # multiply-adds below which another product than torch's own costs more than it saves
_LEAST_ELEMENTS = 1 << 15  # of an activation, likewise


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN where that is faster: fp32 on a CPU with AVX-512, in eager mode.

    Compiled, exported, scripted and traced programs hold the plain operator, and so it is for tensors of other classes
    and under a `TorchDispatchMode`.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D).

    Raises:
        BackendUnavailableError: If a backend was asked for by `use_backend` or the environment and cannot be used.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        with replacing.paused(x, weight, bias):
            if _other_serves(x, weight):
                return _linear(x, weight, bias)
    return F.linear(x, weight, bias)


def has_other_linear() -> bool:
    """Whether `linear` may be anything but `F.linear` here."""
    return onednn.IS_FASTER or bool(requested_backend('linear'))


def _other_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether `x` and `weight` are for another product than torch's own."""
    if type(x) not in replacing.PLAIN or type(weight) not in replacing.PLAIN:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if is_in_torch_dispatch_mode():  # counters, say, that know torch's own operators
        return False
    name = requested_backend('linear')
    automatic = (
        onednn.IS_FASTER
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and x.dtype == weight.dtype
        and torch.backends.mkldnn.enabled
        and (x.device.type not in ('cpu', 'cuda') or not torch.is_autocast_enabled(x.device.type))
    )
    if not name and not automatic:
        return False
    return resolve('linear', name, TensorProblem(x.device.type, x.dtype)) is not F


@torch.library.custom_op('visionssm::linear', mutates_args=())
def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return resolve('linear', 'onednn', TensorProblem(x.device.type, x.dtype)).linear(x, weight, bias)


@_linear_op.register_fake
def _linear_fake(x, weight, bias):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _backward(inputs, grads, needs):
    x, weight, _ = inputs
    rows = grads[0].reshape(-1, grads[0].shape[-1])
    return (
        linear(grads[0], weight.t()) if needs[0] else None,
        _product_over_rows(rows, x.reshape(-1, x.shape[-1])) if needs[1] else None,
        rows.sum(0) if needs[2] else None,
    )


def _product_over_rows(a: Tensor, b: Tensor) -> Tensor:
    """`a.t() @ b`; oneDNN takes up to 7 times as long if the wider one is its weight."""
    return linear(a.t(), b.t()) if a.shape[1] <= b.shape[1] else linear(b.t(), a.t()).t()


def _jvp(inputs, tangents):
    x, weight, _ = inputs
    terms = [
        None if tangents[0] is None else linear(tangents[0], weight),
        None if tangents[1] is None else linear(x, tangents[1]),
        None if tangents[2] is None else tangents[2].expand(*x.shape[:-1], -1),
    ]
    terms = [term for term in terms if term is not None]
    return (sum(terms[1:], terms[0]),)


def _batch(call, size, dims, inputs):
    return torch.vmap(F.linear, tuple(dims))(*inputs)


_linear = differentiable(_linear_op, backward=_backward, jvp=_jvp, batch=_batch)


def depthwise_at_once(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    mirrored: bool = False,
    shortcut: bool = False,
) -> Tensor | None:
    """A depthwise convolution of stride 1 that keeps the size, and its activation, in C++.

    Args:
        x: Map, (B, H, W, C).
        weight: (C, 1, h, w).
        bias: (C,).
        activation: none, gelu or silu.
        padding: Zeros above and left of the map, at most as many as the kernel spans beyond its first tap; below and
            right there are the rest.
        dilation: Rows and columns from one tap to the next.
        mirrored: Whether the last tap comes first.
        shortcut: Add the map itself before the activation.

    Returns:
        (B, H, W, C); None where it does not serve, as `library_serves` says.

    Raises:
        ValueError: If the arguments do not fit together.
    """
    if not library_serves(x, weight, bias):
        return None
    return run('depthwise', _library().depthwise, x, weight, bias, activation, padding, dilation, mirrored, shortcut)


def linear_gelu_at_once(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """GELU of a linear layer, its bias and the activation in C++: MKL would first write the bias to the whole output.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D); None where it does not serve, as `library_serves` says, for few elements, and for shapes that torch
        has to broadcast or to refuse.
    """
    if not library_serves(x, weight, bias) or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    if x.numel() // x.shape[-1] * weight.shape[0] < _LEAST_ELEMENTS:
        return None
    y = linear(x, weight)
    run('gelu', _library().activate, y, None if bias is None else bias.contiguous(), 'gelu')
    return y


def library_serves(*tensors: Tensor | None) -> bool:
    """Whether the C++ library may compute with these at inference.

    It may with dense fp32 tensors of an x86 CPU that are not empty, where nobody differentiates, transforms, traces,
    compiles or watches, autocast is off, and no backend of `linear` is asked for.
    """
    given = [x for x in tensors if x is not None]
    return (
        not torch.is_grad_enabled()
        and onednn.ON_X86
        and is_unwatched(*given)  # before a size is read: programs are of any
        and all(x.dtype == torch.float32 for x in given)
        and not torch.is_autocast_enabled('cpu')
        and not requested_backend('linear')
        and given[0].numel() > 0
        and not _library().refuse(TensorProblem('cpu', torch.float32))
    )


@lru_cache(maxsize=1)
def _library() -> ModuleType:
    return importlib.import_module('visionssm.ops.convolution_cpu')  # at first use, as all of the C++ library


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`F.scaled_dot_product_attention`, written out under transforms of torch: its fused kernels have no tangents.

    Nor have they gradients of gradients: take these within `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        q: (..., L, C).
        k: (..., S, C).
        v: (..., S, D).
        attn_mask: Added to the logits, broadcast to (..., L, S).
        scale: What the products are multiplied by; None: 1 / sqrt(C).

    Returns:
        (..., L, D).
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if transformed(q, k, v, attn_mask):
            logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
            return (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)
