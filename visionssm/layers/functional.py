"""The operators as layers call them, and torch's own linear layers computed by the fastest product there is.

`torch.fx` and timm's feature extraction record each call of an operator as one node.
"""

import threading
from collections.abc import Collection

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.nn import Linear  # exactly torch's: what swaps, counts, prunes or quantises linear layers knows these
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import TorchFunctionMode

from visionssm.ops import attention, depthwise_at_once, linear, na_av, na_bias, na_qk, scan_tokens
from visionssm.ops.export import add_tokens as add_steps
from visionssm.ops.export import wants_plain

__all__ = [
    'FastLinears',
    'Linear',
    'add_tokens',
    'attention',
    'is_hooked',
    'is_untouched',
    'linear',
    'na_av',
    'na_bias',
    'na_qk',
    'scan_tokens',
    'silu_once',
]


def add_tokens(x: Tensor, order: Tensor, y: Tensor) -> Tensor:
    """Zeros like `x` (B, L, D) with every step of walks, `y` (B, T, K, D), added at its token in `order` (K, T)."""
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if wants_plain():
            return add_steps(x.shape[1], order, y)
    return y.new_zeros(x.shape).index_add(1, order.t().flatten(), y.flatten(1, 2))


for _name in ('add_tokens', 'linear', 'na_av', 'na_bias', 'na_qk', 'scan_tokens'):
    register_notrace_function(globals()[_name])
    torch.fx.wrap(_name)


def silu_once(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else reads: in its place where no gradient is recorded, which saves a map."""
    return F.silu(x, inplace=not (torch.is_grad_enabled() or torch.jit.is_tracing()))


class _Products(TorchFunctionMode):
    """`F.linear`, whoever calls it, is `visionssm.ops.linear`, which steps aside for all but plain tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


_PLAIN = (Tensor, nn.Parameter)  # not quantised, distributed, or of a tracer


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody has attached anything to the calls of `module`."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return 'forward' in module.__dict__ or any(hooks) or _has_any_global_hook()


def is_untouched(module: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Whether `module` and all within are exactly of `kinds`, and nobody has attached anything: their weights say all.

    A module whose parts pass may compute what they would without calling them.
    """
    return all(
        type(part) in kinds
        and not is_hooked(part)
        and all(x is None or type(x) in _PLAIN for x in part._parameters.values())
        for part in module.modules()
    )


def activated_at_once(x: Tensor, conv: nn.Conv2d, act: nn.Module) -> Tensor | None:
    """A depthwise 3x3 convolution of a map (B, H, W, C) and its activation without calling them at inference.

    Returns:
        (B, H, W, C); None where the modules must be called.
    """
    if type(x) is not Tensor or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    activation = _ACTIVATIONS.get(type(act))
    if activation is None or not (is_untouched(conv, _CONVOLUTIONS) and is_untouched(act, _ACTIVATIONS)):
        return None
    if activation == 'gelu' and act.approximate != 'none':
        return None
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 'zeros') or conv.groups != conv.in_channels:
        return None
    return depthwise_at_once(x, conv.weight, conv.bias, activation)


_CONVOLUTIONS = frozenset({nn.Conv2d})
_ACTIVATIONS = {nn.Identity: 'none', nn.GELU: 'gelu', nn.SiLU: 'silu'}
_inside = threading.local()
# of a block's input, below which looking at every call costs more than the faster product saves
_LEAST_ELEMENTS = 1 << 17


class FastLinears(nn.Module):
    """A module inside which linear layers of large fp32 tensors on a CPU run by `visionssm.ops.linear`, in eager mode.

    The layers are `nn.Linear` and called as such, so hooks, adapters and all else attached to them work.
    """

    def __call__(self, *args, **kwargs):
        """Call the module."""
        x = args[0] if args else None
        if (
            type(x) is not Tensor
            or x.dtype != torch.float32
            or x.device.type != 'cpu'
            or torch.jit.is_tracing()  # before a size is read, of which the tracer would warn
            or x.numel() < _LEAST_ELEMENTS
            or torch.compiler.is_compiling()
            or getattr(_inside, 'on', False)
        ):
            return super().__call__(*args, **kwargs)
        _inside.on = True
        try:
            with _Products():
                return super().__call__(*args, **kwargs)
        finally:
            _inside.on = False
