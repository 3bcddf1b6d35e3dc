"""Linear layers whose product oneDNN computes on x86 CPUs, where torch itself asks MKL.

On CPUs that are not Intel's, MKL takes its AVX2 path: on a Zen 5 core oneDNN is 2 to 3 times as fast at the sizes of
these models. torch reaches oneDNN's product in eager mode by one operator alone, which inductor uses.
"""

import platform

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

_LEAST_WORK = 1 << 21  # multiply-adds below which the call costs more than it saves
_ON_X86 = platform.machine() in ('x86_64', 'AMD64') and torch.backends.mkldnn.is_available()
_AVAILABLE = _ON_X86 and hasattr(torch.ops.mkldnn, '_linear_pointwise')


@torch.fx.wrap
@register_notrace_function
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN where that is faster: fp32 on an x86 CPU, in eager mode.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D).
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if _onednn_serves(x, weight):
            return torch.ops.visionssm.linear(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) to (..., D)."""
        return linear(input, self.weight, self.bias)


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    return (
        _AVAILABLE
        and not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and type(x) is Tensor  # not a stand-in of a tracer
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled('cpu')
        and torch.backends.mkldnn.enabled
    )


@torch.library.custom_op('visionssm::linear', mutates_args=())
def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


@_linear_op.register_fake
def _linear_fake(x, weight, bias):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x = linear(grad, weight.t()) if needs[0] else None
    rows = grad.reshape(-1, grad.shape[-1])
    grad_weight = linear(rows.t(), x.reshape(-1, x.shape[-1]).t()) if needs[1] else None
    return grad_x, grad_weight, rows.sum(0) if needs[2] else None


_linear_op.register_autograd(_backward, setup_context=_setup_context)
