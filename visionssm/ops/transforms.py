"""What makes an operator differentiable, in reverse and forward mode, and batched by `torch.vmap`, all of it nested.

`torch.library.register_autograd` serves plain eager code, compiled code and TorchScript, but its function takes part in
no transform of `torch.func` and drops the tangents of forward mode without a word. There, calls go through an
`autograd.Function` around the same operator with the same formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import replacing

Rule = Callable[..., tuple[Tensor | None, ...]]


def differentiable(
    op: Any, *, backward: Rule, jvp: Rule, batch: Callable[..., Any], kept: int = 0
) -> Callable[..., Any]:
    """Register the formulas of `op` and return the function to call it by.

    Args:
        op: A custom op without keyword-only arguments that returns a tensor or a tuple of tensors.
        backward: backward(inputs, grads, needs, *kept): one gradient or None per tensor of `inputs`, from the gradients
            of the outputs (None: zero) and whether each input needs one. It may be differentiated itself.
        jvp: jvp(inputs, tangents): one tangent per output, from one per input (None: zero).
        batch: batch(call, size, dims, inputs): the outputs with the batch in front, by calls of the returned function;
            `dims` has the batch dimension of each input, or None.
        kept: How many of the last outputs `backward` gets; they are its own and have no gradient.

    Returns:
        The function; its arguments are positional, those of `op`.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [x if isinstance(x, Tensor) else None for x in inputs]
        ctx.save_for_backward(*tensors, *(output[-kept:] if kept else ()))
        ctx.save_for_forward(*tensors)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.set_materialize_grads(False)

    def saved(ctx: Any) -> tuple[tuple[Any, ...], Sequence[Tensor]]:
        tensors, count = ctx.saved_tensors, len(ctx.others)  # once: checkpointing unpacks it anew
        inputs = tuple(other if x is None else x for x, other in zip(tensors[:count], ctx.others, strict=True))
        return inputs, tensors[count:]

    def backward_formula(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        none = (None,) * len(ctx.others)
        if all(grad is None for grad in grads):
            return none
        inputs, outputs = saved(ctx)
        result = tuple(backward(inputs, grads, ctx.needs_input_grad, *outputs))
        return result + none[len(result) :]

    def vmap(info: Any, dims: Sequence[int | None], *inputs: Any) -> tuple[Any, Any]:
        outputs = batch(call, info.batch_size, dims, inputs)
        return outputs, (0,) * len(outputs) if isinstance(outputs, tuple) else 0

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return op(*inputs)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            # torch calls this with forward mode switched off, so that the tangent of a tangent would be zero
            with forward_ad._set_fwd_grad_enabled(torch._C._are_functorch_transforms_active()):
                result = jvp([_primal(x) for x in saved(ctx)[0]], [_primal(x) for x in tangents])
            return result if len(result) > 1 else result[0]

    Call.setup_context = staticmethod(setup_context)
    Call.backward = staticmethod(backward_formula)
    Call.vmap = staticmethod(vmap)

    def call(*inputs: Any) -> Any:
        if transformed(*inputs):
            return Call.apply(*inputs)
        direct = is_unwatched(*inputs) and not torch.autograd._profiler_enabled()
        return (implementation if direct else op)(*inputs)

    implementation = getattr(op, '_init_fn', op)
    op.register_autograd(backward_formula, setup_context=setup_context)
    op.register_vmap(vmap)
    return call


def _primal(x: Any) -> Any:
    """`x` without its tangent of the innermost forward mode; those of the modes around stay."""
    return forward_ad.unpack_dual(x).primal if isinstance(x, Tensor) else x


def transformed(*inputs: Any) -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is under way."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():  # there is no public question for it
        return True
    # without a level no tensor has a tangent, and asking each takes as long as a small kernel
    return forward_ad._current_level >= 0 and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in inputs
    )


def is_unwatched(*inputs: Any) -> bool:
    """Whether nothing but a result is asked for, of plain tensors on a CPU: no gradient, program, counter or mode.

    Then an operator's function may be called as such: the way to it through the dispatcher takes longer than a small
    scan does.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or replacing.others_are_on():
        return False
    recorded = torch.is_grad_enabled()
    for x in inputs:
        if isinstance(x, Tensor):
            if type(x) not in replacing.PLAIN or (recorded and x.requires_grad):
                return False
            if torch._C._dispatch_keys(x).raw_repr() not in _PLAIN_KEYS:
                return False
    return True


def _plain_keys() -> frozenset[int]:
    """What the dispatcher knows of dense tensors in a CPU's memory that are what they hold: not negated later, say."""
    keys = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            keys.add(torch._C._dispatch_keys(torch.empty(0, device='cpu')).raw_repr())
    return frozenset(keys)


_PLAIN_KEYS = _plain_keys()


def run(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that is no operator, and tell a profiler its name."""
    if not torch.autograd._profiler_enabled():
        return function(*args)
    with torch.profiler.record_function(f'visionssm::{name}'):
        return function(*args)


def each(call: Callable[..., Any], size: int, dims: Sequence[int | None], inputs: Sequence[Any]) -> Any:
    """The batching rule of operators that have none: one call per sample."""
    samples = [
        call(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples)
    return tuple(torch.stack(outputs) for outputs in zip(*samples, strict=True))


def in_front(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """`x` with its batch dimension in front; expanded to `size` if it has none."""
    if x is None:
        return None
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def gradient_of(function: Callable[..., Any], *primals: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """The map from gradients of outputs of `function`, made of torch's operators, to gradients of `primals`."""

    def pull(*grads: Tensor) -> tuple[Tensor, ...]:
        outputs, back = torch.func.vjp(function, *primals)
        return back(grads if isinstance(outputs, tuple) else grads[0])

    return pull


def tangent_of(
    function: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor], zeros: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The tangent of the outputs of `function`: the gradient is linear, so its own gradient is the tangent.

    In this form it nests in every other transform; `torch.func.jvp` would not in `torch.autograd.forward_ad`.

    Args:
        function: As for `gradient_of`.
        primals: Where to differentiate.
        tangents: Along what, one per primal.
        zeros: Zeros like the outputs.
    """
    return gradient_of(gradient_of(function, *primals), *zeros)(*tangents)
