"""The operators as layers call them, and torch's own linear layers computed by the fastest product there is.

`torch.fx` and timm's feature extraction record each call of an operator as one node.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.nn import Linear  # exactly torch's: what swaps, counts, prunes or quantises linear layers knows these
from torch.nn.modules.module import _has_any_global_hook

from visionssm.ops import (
    attention,
    depthwise_at_once,
    has_other_linear,
    library_serves,
    linear,
    linear_gelu_at_once,
    na_av,
    na_bias,
    na_qk,
    na_weights,
    replacing,
    scan_projected,
    scan_tokens,
)
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
    'na_weights',
    'scan_projected',
    'scan_tokens',
    'silu_once',
]


def add_tokens(x: Tensor, order: Tensor, y: Tensor) -> Tensor:
    """Zeros like `x` (B, L, D) with every step of walks, `y` (B, T, K, D), added at its token in `order` (K, T)."""
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if wants_plain():
            return add_steps(x.shape[1], order, y)
    return y.new_zeros(x.shape).index_add(1, order.t().flatten(), y.flatten(1, 2))


for _name in ('add_tokens', 'linear', 'na_av', 'na_bias', 'na_qk', 'na_weights', 'scan_projected', 'scan_tokens'):
    register_notrace_function(globals()[_name])
    torch.fx.wrap(_name)


def silu_once(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else reads: in its place where no gradient is recorded, which saves a map."""
    return F.silu(x, inplace=not (torch.is_grad_enabled() or torch.jit.is_tracing()))


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody has attached anything to the calls of `module`."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    changed = 'forward' in module.__dict__ or module._compiled_call_impl is not None
    return changed or any(hooks) or _has_any_global_hook()


def is_untouched(module: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Whether `module` and all within are exactly of `kinds`, and nobody has attached anything: their weights say all.

    A module whose parts pass may compute what they would without calling them.
    """
    return all(
        type(part) in kinds
        and not is_hooked(part)
        and all(x is None or type(x) in replacing.PLAIN for x in part._parameters.values())
        for part in module.modules()
    )


def activated_at_once(
    x: Tensor, conv: nn.Conv2d, act: nn.Module | str, shortcut: bool = False, kind: type[nn.Conv2d] = nn.Conv2d
) -> Tensor | None:
    """A depthwise convolution of a map (B, H, W, C) and its activation without calling them at inference.

    Args:
        x: The map.
        conv: The convolution.
        act: The activation: a module, or none, gelu or silu.
        shortcut: Add the map itself before the activation.
        kind: The exact class that `conv` must have.

    Returns:
        (B, H, W, C); None where the modules must be called.
    """
    if type(x) is not Tensor or not _is_eager_inference():
        return None
    with replacing.paused():
        if not is_untouched(conv, (kind,)):
            return None
        activation = _name_of(act)
        if activation is None:
            return None
        if conv.groups != conv.in_channels or conv.stride != (1, 1) or conv.padding_mode != 'zeros':
            return None
        if any(2 * p != d * (k - 1) for k, p, d in zip(conv.kernel_size, conv.padding, conv.dilation, strict=True)):
            return None
        return depthwise_at_once(x, conv.weight, conv.bias, activation, conv.padding, conv.dilation, False, shortcut)


def linear_activated_at_once(x: Tensor, layer: nn.Linear, act: nn.Module | str) -> Tensor | None:
    """A linear layer and GELU without calling them at inference.

    Args:
        x: (..., C).
        layer: The layer.
        act: The activation: a module, or gelu.

    Returns:
        (..., D); None where the modules must be called.
    """
    if type(x) is not Tensor or not _is_eager_inference():
        return None
    with replacing.paused():
        if not is_untouched(layer, (Linear,)) or _name_of(act) != 'gelu':
            return None
        return linear_gelu_at_once(x, layer.weight, layer.bias)


def _is_eager_inference() -> bool:
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def _name_of(act: nn.Module | str) -> str | None:
    if isinstance(act, str):
        return act
    if not is_untouched(act, _ACTIVATIONS) or (type(act) is nn.GELU and act.approximate != 'none'):
        return None
    return _ACTIVATIONS[type(act)]


def causal_silu_at_once(x: Tensor, conv: nn.Conv1d, backwards: bool, kind: type[nn.Conv1d]) -> Tensor | None:
    """SiLU of a depthwise convolution that looks at earlier tokens, or at later ones, without calling it at inference.

    Args:
        x: Tokens, (B, L, C).
        conv: The convolution of (B, C, L), and nothing but its weights.
        backwards: Whether it looks at later tokens, the nearest by its last tap.
        kind: The exact class that `conv` must have.

    Returns:
        (B, L, C); None where the module must be called.
    """
    if type(x) is not Tensor or not _is_eager_inference():
        return None
    with replacing.paused():
        if not is_untouched(conv, (kind,)):
            return None
        weight = conv.weight.unsqueeze(2)
        zeros = 0 if backwards else weight.shape[3] - 1
        y = depthwise_at_once(x.unsqueeze(1), weight, conv.bias, 'silu', (0, zeros), mirrored=backwards)
        return None if y is None else y.squeeze(1)


def causal_takes_strides(x: Tensor) -> bool:
    """Whether `causal_silu_at_once`, which takes any strides, will do as long as nothing is attached to its module."""
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505  which the script compiler leaves out
        if type(x) is not Tensor or not _is_eager_inference():
            return False
        with replacing.paused(x):
            return library_serves(x)


_ACTIVATIONS = {nn.Identity: 'none', nn.GELU: 'gelu', nn.SiLU: 'silu'}
# of a block's input, below which looking at every call costs more than faster products save: elements, and these times
# the last axis, which is the work of a linear layer unless channels come first
_LEAST_ELEMENTS, _LEAST_WORK = 1 << 17, 1 << 24


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
            or x.ndim == 0
            or x.numel() < _LEAST_ELEMENTS
            and x.numel() * x.shape[-1] < _LEAST_WORK
            or torch.compiler.is_compiling()
            or replacing.is_on()
            or not has_other_linear()
        ):
            return super().__call__(*args, **kwargs)
        with replacing.Replacing(_FASTER):
            return super().__call__(*args, **kwargs)


_FASTER = {F.linear: linear}  # which steps aside for all but plain tensors
