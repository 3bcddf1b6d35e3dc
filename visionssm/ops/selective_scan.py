"""The selective scan: one op that carries the zoo. Checks its input, then dispatches by tensor (see `dispatch.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from . import chunked, export, replacing
from .dispatch import BackendUnavailableError, requested_backend, resolve
from .inputs import MERGED, PER_DIRECTION, PER_STEP, ScanInputs, check_positions, projected_steps
from .reference import selective_scan_ref
from .transforms import differentiable, each, gradient_of, in_front, is_unwatched, run, tangent_of

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LONGEST = 1 << 62  # window that an operator takes
_TOKENS = ('delta', 'B', 'C', 'z')  # in the dtype of u, or in full precision


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    order: Tensor | None = None,
    param_order: Tensor | None = None,
    merge: bool = True,
    per_step: bool = False,
    local_window: int | None = None,
    return_last_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan of channels-last tokens along K visiting orders at once.

    Direction k visits token p = order[k, t] at step t and takes its parameters from token q = param_order[k, t] (= p
    unless given), with dt = softplus(delta + delta_bias) or delta + delta_bias:

        h[t] = exp(dt[q] * A) * h[t-1] + dt[q] * B[q] * u[p];   y[t] = C[q] . h[t] + D * u[p]

    With `local_window` w, LBMamba's local backward scan joins in: inside each run of w steps, right to left,
    r[t] = exp(dt A) r[t+1] + dt B u (r = 0 past the run), and y[t] reads h[t] + exp(dt A) r[t+1] instead of h[t].
    The output of step t is multiplied by SiLU(z[p]) and added to token p.

    Args:
        u: Tokens in pixel order, (B, L, D), or (B, L, K, D) when the directions see different inputs; fp32, bf16, fp16
            or fp64.
        delta: Time steps before bias and softplus, (B, L, K, D), or (B, L, K, H) with H dividing D: heads of D / H
            channels share a step (then `A` is (K, H, N) and `delta_bias` (K, H)). Strides are free, 0 included.
        A: Decay rates, negative, (K, D, N), or (K, D, 1): one rate for all N states (Mamba-2).
        B: Input weights, (B, L, K, N).
        C: Output weights, (B, L, K, N).
        D: Skip weights, (K, D).
        z: Gate before SiLU, (B, L, D).
        delta_bias: (K, D).
        delta_softplus: Whether softplus is applied to `delta + delta_bias`.
        order: Token positions in visiting order, (K, T), int32 or int64 in [0, L); tokens may be visited more than once
            or not at all. None: every direction visits 0..L-1.
        param_order: Tokens that delta, B and C are taken from, (K, T); None: those of `order`. PlainMamba permutes `u`
            alone: its `param_order` is 0..L-1 (arXiv:2403.17695).
        merge: Sum the directions back to pixel order, (B, L, D), or keep them, (B, L, K, D). Tokens that are never
            visited get 0.
        per_step: With `merge=False`: return what each step put out, (B, T, K, D), before it is added to its token
            (MSVMamba normalises there, arXiv:2405.14174).
        local_window: Steps per local backward window, from 1; None: no backward scan.
        return_last_state: Return also the forward state after the last step, (B, K, D, N), fp32 (fp64 for fp64).
        backend: triton, cpu, torch or reference; None: `use_backend`, `VISIONSSM_BACKEND`, or the first that can.

    Returns:
        Output in the dtype of `u`, or (output, last state). State and arithmetic are fp32 (fp64 for fp64).

    Raises:
        ValueError: If shapes, `order` values or `local_window` do not fit; the message names both sides.
        TypeError: If a dtype is not supported or does not go with the others.
        BackendUnavailableError: If a backend was asked for and can't serve these tensors.

    Source: arXiv:2312.00752, Algorithm 2; arXiv:2401.10166 (directions); arXiv:2506.15976, section 3 (local window).
    """
    check_dtypes(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    _check_shapes(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    _check_orders(order, param_order, delta)
    if per_step and merge:
        raise ValueError('per_step=True needs merge=False: outputs of single steps are not merged')
    whole = (int, torch.SymInt, Tensor) if torch.jit.is_tracing() else (int, torch.SymInt)  # sizes are tensors there
    if local_window is not None and (
        isinstance(local_window, bool) or not isinstance(local_window, whole) or local_window < 1
    ):
        raise ValueError(f'local_window is {local_window!r}; allowed are integers from 1, or None for no local scan')
    heads, channels = delta.shape[3], u.shape[-1]
    if heads != channels:
        delta = delta.repeat_interleave(channels // heads, 3)
        A = A.repeat_interleave(channels // heads, 1)
        delta_bias = None if delta_bias is None else delta_bias.repeat_interleave(channels // heads, 1)
    inputs = ScanInputs(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        order=order,
        param_order=param_order,
        delta_softplus=bool(delta_softplus),
        mode=_mode(merge, per_step),
        local_window=min(local_window or 0, _LONGEST),
        return_last_state=return_last_state,
    )
    # compiled code can't read the context; the op does when it runs
    name = backend or '' if torch.compiler.is_compiling() else requested_backend('scan', backend)
    if name == 'reference':  # plain differentiable torch: no operator around it
        if not torch.compiler.is_compiling():
            with suppress(RuntimeError):  # vmap shows no values
                check_positions('order', order, u.shape[1])
                check_positions('param_order', param_order, u.shape[1])
        return selective_scan_ref(
            **dict(zip(ScanInputs._fields[:8], inputs.tensors, strict=True)),
            delta_softplus=delta_softplus,
            order=order,
            param_order=param_order,
            merge=merge,
            per_step=per_step,
            local_window=local_window,
            return_last_state=return_last_state,
        )
    if name in ('', 'cpu'):
        inputs = inputs._replace(keep_starts=_is_trained(inputs.tensors))
    out, last_state, _ = _scan(*inputs, name)
    return (out, last_state) if return_last_state else out


def scan_tokens(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    order: Tensor | None = None,
    param_order: Tensor | None = None,
    merge: bool = True,
    per_step: bool = False,
    local_window: int = 0,
) -> Tensor:
    """`selective_scan` for modules: the same op, of one return type so that `torch.jit.script` compiles it.

    Arguments are those of `selective_scan`, except that softplus is applied unless said otherwise and that a
    `local_window` of 0 is none.
    """
    if not torch.jit.is_scripting():
        if export.wants_plain():
            return export.scan(
                u, delta, A, B, C, D, z, delta_bias, order, param_order, delta_softplus, _mode(merge, per_step),
                local_window,
            )  # fmt: skip
        with replacing.paused(u, delta, A, B, C, D, z, delta_bias):
            return selective_scan(
                u=u,
                delta=delta,
                A=A,
                B=B,
                C=C,
                D=D,
                z=z,
                delta_bias=delta_bias,
                delta_softplus=delta_softplus,
                order=order,
                param_order=param_order,
                merge=merge,
                per_step=per_step,
                local_window=local_window or None,
            )
    channels = u.shape[-1]
    if delta.shape[3] != channels:
        repeats = channels // delta.shape[3]
        delta = delta.repeat_interleave(repeats, 3)
        A = A.repeat_interleave(repeats, 1)
        if delta_bias is not None:
            delta_bias = delta_bias.repeat_interleave(repeats, 1)
    mode = 2 if per_step else 0 if merge else 1  # numbers, for the script compiler
    return torch.ops.visionssm.selective_scan(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        order=order,
        param_order=param_order,
        delta_softplus=delta_softplus,
        mode=mode,
        local_window=local_window,
        return_last_state=False,
        keep_starts=False,
        backend='',
    )[0]


def scan_projected(
    u: Tensor,
    dt: Tensor,
    dt_proj: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    order: Tensor | None = None,
    param_order: Tensor | None = None,
    merge: bool = True,
    per_step: bool = False,
    local_window: int = 0,
) -> Tensor:
    """`scan_tokens` with the delta dt dt_proj^T, which the C++ kernel computes itself at inference and never stores.

    `dt` is (B, L, K, R) and `dt_proj` (K, D, R); if the latter is None, the former is delta itself. All other arguments
    are those of `scan_tokens`.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if dt_proj is not None:
            inputs = ScanInputs(
                u, dt, A, B, C, D, z, delta_bias, order, param_order, True, _mode(merge, per_step), local_window, False
            )
            with replacing.paused(*inputs.tensors, dt_proj):
                y = _scan_projected_at_once(inputs, dt_proj)
            if y is not None:
                return y
    return scan_tokens(
        u=u,
        delta=dt if dt_proj is None else projected_steps(dt, dt_proj),
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        order=order,
        param_order=param_order,
        merge=merge,
        per_step=per_step,
        local_window=local_window,
    )


def _scan_projected_at_once(inputs: ScanInputs, dt_proj: Tensor) -> Tensor | None:
    """The scan whose `delta` is of low rank, by a backend that takes that; None if there is none or one could tell."""
    u, dt = inputs.u, inputs.delta
    if type(u) is not Tensor or not is_unwatched(*inputs, dt_proj) or torch.is_autocast_enabled('cpu'):
        return None
    if any(x is not None and x.dtype != torch.float32 for x in (*inputs.tensors, dt_proj)):
        return None
    if dt.ndim != 4 or dt_proj.shape != (dt.shape[2], u.shape[-1], dt.shape[3]):
        raise ValueError(f'dt_proj has shape {_shape(dt_proj)}; dt has {_shape(dt)} and u {_shape(u)}')
    delta = dt[..., :1].expand(*dt.shape[:3], u.shape[-1])  # as large as what the kernel makes of it
    _check_shapes(*inputs._replace(delta=delta).tensors)
    _check_orders(inputs.order, inputs.param_order, delta)
    inputs = inputs.with_bounded_window()
    module = resolve('scan', requested_backend('scan'), inputs.problem)
    if not getattr(module, 'PROJECTS_STEPS', False):
        return None
    return run('scan_projected', module.forward, inputs, dt_proj)[0]


def _mode(merge: bool, per_step: bool) -> int:
    return PER_STEP if per_step else MERGED if merge else PER_DIRECTION


def check_dtypes(u: Tensor, **others: Tensor | None) -> None:
    """Raise if a tensor has a dtype or device that does not go with `u`."""
    for name, x in (('u', u), *others.items()):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f'{name} is a {type(x).__name__}; it must be a tensor')
        if x.is_complex():
            raise TypeError(
                f'{name} is complex; selective_scan supports real tensors only (S4-style complex states are not '
                'implemented)'
            )
        if x.dtype not in _FLOATS:
            raise TypeError(f'{name} is {x.dtype}; allowed are {", ".join(map(str, _FLOATS))}')
        if (x.dtype == torch.float64) != (u.dtype == torch.float64):
            raise TypeError(f'{name} is {x.dtype} and u is {u.dtype}: float64 goes with float64 only')
        if x.device != u.device:
            raise ValueError(f'{name} is on {x.device} and u on {u.device}: all tensors must be on one device')
        if name in _TOKENS and x.dtype != u.dtype and x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f'{name} is {x.dtype} and u is {u.dtype}: allowed is the dtype of u, or float32')


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise `ValueError` if shapes do not fit together."""
    if u.ndim not in (3, 4):
        raise ValueError(f'u has shape {_shape(u)}; allowed are (B, L, D) and (B, L, K, D)')
    if delta.ndim != 4:
        raise ValueError(f'delta has shape {_shape(delta)}; it must be (B, L, K, D)')
    if B.ndim != 4 or B.shape[-1] < 1:
        raise ValueError(f'B has shape {_shape(B)}; it must be (B, L, K, N) with N at least 1')
    batch, length, channels = u.shape[0], u.shape[1], u.shape[-1]
    directions, heads, d_state = delta.shape[2], delta.shape[3], B.shape[-1]
    if heads < 1 or channels % heads != 0:
        raise ValueError(f'delta has {heads} channels, which does not divide the {channels} channels of u')
    if A.ndim != 3 or (A.shape[-1] != 1 and A.shape[-1] != d_state):  # `in` fails on symbolic sizes in torch 2.11
        raise ValueError(
            f'A has shape {_shape(A)}; expected ({directions}, {heads}, {d_state}) or ({directions}, {heads}, 1)'
        )
    expected = {
        'u': (u, (batch, length, directions, channels) if u.ndim == 4 else (batch, length, channels)),
        'delta': (delta, (batch, length, directions, heads)),
        'A': (A, (directions, heads, A.shape[-1])),
        'B': (B, (batch, length, directions, d_state)),
        'C': (C, (batch, length, directions, d_state)),
        'D': (D, (directions, channels)),
        'z': (z, (batch, length, channels)),
        'delta_bias': (delta_bias, (directions, heads)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and (x.ndim != len(shape) or any(a != b for a, b in zip(x.shape, shape, strict=True))):
            raise ValueError(
                f'{name} has shape {_shape(x)}; expected {shape} '
                f'from u {_shape(u)}, delta {_shape(delta)} and B {_shape(B)}'
            )


def _check_orders(order: Tensor | None, param_order: Tensor | None, delta: Tensor) -> None:
    """Raise `ValueError` or `TypeError` if an order does not fit; its positions are checked where they are read."""
    _, length, directions, _ = delta.shape
    for name, table in (('order', order), ('param_order', param_order)):
        if table is None:
            continue
        if not isinstance(table, Tensor):
            raise TypeError(f'{name} is a {type(table).__name__}; it must be a tensor')
        if table.dtype not in (torch.int32, torch.int64):
            raise TypeError(f'{name} is {table.dtype}; allowed are torch.int32 and torch.int64')
        if table.device != delta.device:
            raise ValueError(f'{name} is on {table.device} and the tokens are on {delta.device}: it must be there, too')
        if table.ndim != 2 or table.shape[0] != directions:
            raise ValueError(f'{name} has shape {_shape(table)}; expected ({directions}, T), one row per direction')
    steps = length if order is None else order.shape[1]
    if param_order is not None and param_order.shape[1] != steps:
        raise ValueError(
            f'param_order has {param_order.shape[1]} steps and the visiting order {steps}: they must be equal'
        )


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _is_trained(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a gradient will be asked for, on a device whose kernel can use states of the forward pass."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return tensors[0].device.type == 'cpu' and any(x is not None and x.requires_grad for x in tensors)


# ---- the operators -------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? order, '
    'Tensor? param_order, bool delta_softplus, SymInt mode, SymInt local_window, bool return_last_state, '
    'bool keep_starts, str backend'
)


def _received(arguments: Sequence[Any]) -> tuple[ScanInputs, Any]:
    """The inputs and the backend's module that serves them."""
    inputs, name = ScanInputs(*arguments[:-1]), arguments[-1] or requested_backend('scan')
    if name == 'reference':
        raise BackendUnavailableError(
            'the reference is plain torch around no operator: compiled and scripted code takes it by backend= alone'
        )
    inputs = inputs.with_bounded_window()
    return inputs, resolve('scan', name, inputs.problem)


@torch.library.custom_op(
    'visionssm::selective_scan', mutates_args=(), schema=f'({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)'
)
def _scan_op(*arguments):
    inputs, module = _received(arguments)
    if not getattr(module, 'CHECKS_POSITIONS', False):
        check_positions('order', inputs.order, inputs.u.shape[1])
        check_positions('param_order', inputs.param_order, inputs.u.shape[1])
    out, state, *starts = module.forward(inputs)
    return out, state, starts[0] if starts else inputs.new_starts()


@_scan_op.register_fake
def _scan_fake(*arguments):
    inputs = ScanInputs(*arguments[:-1])
    out, state = inputs.u.new_empty(inputs.out_shape), inputs.u.new_empty(inputs.state_shape, dtype=inputs.work_dtype)
    return out, state, inputs.new_starts()


@torch.library.custom_op(
    'visionssm::selective_scan_backward',
    mutates_args=(),
    schema=f'(Tensor? grad_out, Tensor? grad_state, Tensor starts, {_ARGUMENTS}) -> ({", ".join(["Tensor"] * 8)})',
)
def _scan_backward_op(grad_out, grad_state, starts, *arguments):
    inputs, module = _received(arguments)
    if grad_out is None:
        grad_out = inputs.u.new_zeros(inputs.out_shape)
    kept = getattr(module, 'KEEPS_STARTS', False) and starts.numel() and not starts.view(-1)[0].isnan()
    grad_state = grad_state if inputs.return_last_state else None
    grads = module.backward((grad_out, grad_state), inputs, *([starts] if kept else []))
    return tuple(inputs.u.new_empty(0) if grad is None else grad for grad in grads)


@_scan_backward_op.register_fake
def _scan_backward_fake(grad_out, grad_state, starts, *arguments):
    inputs = ScanInputs(*arguments[:-1])
    return tuple(
        inputs.u.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs.tensors
    )


# ---- their derivatives: the first gradient is a kernel's, all others are those of the scan in torch ----------------


def _scan_backward_rule(arguments, grads, needs, starts):
    inputs = ScanInputs(*arguments[:-1])
    found = _scan_backward(*grads[:2], starts, *arguments)
    return [None if x is None else grad for x, grad in zip(inputs.tensors, found, strict=True)]


def _scan_jvp(arguments, tangents):
    inputs = ScanInputs(*arguments[:-1])
    zeros = inputs.u.new_zeros(inputs.out_shape), inputs.u.new_zeros(inputs.state_shape, dtype=inputs.work_dtype)
    found = tangent_of(_in_torch(inputs), *_present(inputs.tensors, tangents), zeros[: 1 + inputs.return_last_state])
    return *found, *zeros[len(found) :], torch.zeros_like(inputs.new_starts())


def _gradient_backward_rule(arguments, grads, needs):
    primals, gradient = _gradient_in_torch(arguments)
    present, cotangents = _present(primals[3:], grads)
    given = [x for x in primals if x is not None]
    found = iter(gradient_of(gradient, *given)(*cotangents))
    return [None if x is None else next(found) for x in primals]


def _gradient_jvp(arguments, tangents):
    primals, gradient = _gradient_in_torch(arguments)
    zeros = [torch.zeros_like(x) for x in primals[3:] if x is not None]
    found = iter(tangent_of(gradient, *_present(primals, tangents), zeros))
    return tuple(arguments[3].new_zeros(0) if x is None else next(found) for x in primals[3:])


def _present(primals: Sequence[Tensor | None], tangents: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """The primals that are there, and their tangents: zero where there is none."""
    pairs = [(x, tangent) for x, tangent in zip(primals, tangents, strict=False) if x is not None]
    return [x for x, _ in pairs], [torch.zeros_like(x) if tangent is None else tangent for x, tangent in pairs]


def _in_torch(inputs: ScanInputs) -> Callable[..., tuple[Tensor, ...]]:
    """The scan as a function of the tensors that are there, in torch's operators."""

    def scan(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        primals = [None if x is None else next(given) for x in inputs.tensors]
        outputs = chunked.forward(ScanInputs(*primals, *inputs[8:]))
        return outputs if inputs.return_last_state else outputs[:1]

    return scan


def _gradient_in_torch(arguments: Sequence[Any]) -> tuple[Sequence[Tensor | None], Callable[..., tuple[Tensor, ...]]]:
    """What the gradient of a scan is a function of, and this function of those that are there, in torch's operators."""
    grads, inputs = arguments[:2], ScanInputs(*arguments[3:-1])
    shapes = inputs.out_shape, inputs.state_shape
    dtypes = inputs.u.dtype, inputs.work_dtype

    def gradient(*primals: Tensor) -> tuple[Tensor, ...]:
        given = iter(primals)
        cotangents = [
            inputs.u.new_zeros(shape, dtype=dtype) if grad is None else next(given)
            for grad, shape, dtype in zip(grads, shapes, dtypes, strict=True)
        ]
        return gradient_of(_in_torch(inputs), *given)(*cotangents[: 1 + inputs.return_last_state])

    return (*grads, None, *inputs.tensors), gradient  # the states before chunks are no more than a help


def _scan_batch(call, size, dims, arguments):
    inputs = ScanInputs(*arguments[:-1])
    by = ScanInputs(*dims[:-1])
    if any(dim is not None for dim in (by.A, by.D, by.delta_bias, by.order, by.param_order)):
        return each(call, size, dims, arguments)
    # parameters are shared: samples are images
    images = {
        name: None if (x := getattr(inputs, name)) is None else in_front(x, getattr(by, name), size).flatten(0, 1)
        for name in ('u', 'delta', 'B', 'C', 'z')
    }
    outputs = call(*inputs._replace(**images), arguments[-1])
    groups = size, outputs[0].shape[0] // size
    return tuple(x.expand(size, 0) if x.ndim == 1 else x.unflatten(0, groups) for x in outputs)


_scan = differentiable(_scan_op, backward=_scan_backward_rule, jvp=_scan_jvp, batch=_scan_batch, kept=1)
_scan_backward = differentiable(_scan_backward_op, backward=_gradient_backward_rule, jvp=_gradient_jvp, batch=each)
