"""The selective scan: one op that carries the zoo. Checks its input, then dispatches by tensor (see `_dispatch.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _dispatch
from ._dispatch import MERGED, PER_DIRECTION, PER_STEP, output_shape
from ._reference import selective_scan_ref

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    check_scan_inputs(u, delta, A, B, C, D, z, delta_bias, order, param_order, merge, per_step, local_window)
    heads, channels = delta.shape[3], u.shape[-1]
    if heads != channels:
        delta = delta.repeat_interleave(channels // heads, 3)
        A = A.repeat_interleave(channels // heads, 1)
        delta_bias = None if delta_bias is None else delta_bias.repeat_interleave(channels // heads, 1)
    # compiled code can't read the context; the op does when it runs
    name = backend or '' if torch.compiler.is_compiling() else _dispatch.requested_backend(backend)
    if name == 'reference':  # plain differentiable torch: no op around it
        return selective_scan_ref(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, order=order, param_order=param_order, merge=merge,
            per_step=per_step, local_window=local_window, return_last_state=return_last_state,
        )  # fmt: skip
    mode = PER_STEP if per_step else MERGED if merge else PER_DIRECTION
    out, last_state = torch.ops.visionssm.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, order, param_order, delta_softplus, mode, local_window or 0,
        return_last_state, name,
    )  # fmt: skip
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
    """`selective_scan` for modules: the same op, positional so that `torch.jit.script` compiles it; 0 is no window."""
    if not torch.jit.is_scripting():
        return selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, order=order, param_order=param_order, merge=merge,
            per_step=per_step, local_window=local_window or None,
        )  # fmt: skip
    channels = u.shape[-1]
    if delta.shape[3] != channels:
        repeats = channels // delta.shape[3]
        delta = delta.repeat_interleave(repeats, 3)
        A = A.repeat_interleave(repeats, 1)
        if delta_bias is not None:
            delta_bias = delta_bias.repeat_interleave(repeats, 1)
    mode = 2 if per_step else 0 if merge else 1  # numbers, for the script compiler
    return torch.ops.visionssm.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, order, param_order, delta_softplus, mode, local_window, False, ''
    )[0]


def check_scan_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor | None,
    param_order: Tensor | None,
    merge: bool,
    per_step: bool,
    local_window: int | None,
) -> None:
    """Raise `ValueError` or `TypeError` if the arguments of `selective_scan` do not fit together."""
    if A.is_complex():
        raise TypeError(
            'A is complex; selective_scan supports real A only (S4-style complex states are not implemented)'
        )
    for name, x in (
        ('u', u),
        ('delta', delta),
        ('A', A),
        ('B', B),
        ('C', C),
        ('D', D),
        ('z', z),
        ('delta_bias', delta_bias),
    ):
        if x is None:
            continue
        if x.dtype not in _FLOATS:
            raise TypeError(f'{name} is {x.dtype}; allowed are {", ".join(map(str, _FLOATS))}')
        if (x.dtype == torch.float64) != (u.dtype == torch.float64):
            raise TypeError(f'{name} is {x.dtype} and u is {u.dtype}: float64 goes with float64 only')
        if x.device != u.device:
            raise ValueError(f'{name} is on {x.device} and u on {u.device}: all tensors must be on one device')
    for name, x in (('delta', delta), ('B', B), ('C', C), ('z', z)):
        if x is not None and x.dtype != u.dtype and x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f'{name} is {x.dtype} and u is {u.dtype}: allowed is the dtype of u, or float32')

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
    _check_order('order', order, directions, length)
    _check_order('param_order', param_order, directions, length)
    steps = length if order is None else order.shape[1]
    if param_order is not None and param_order.shape[1] != steps:
        raise ValueError(
            f'param_order has {param_order.shape[1]} steps and the visiting order {steps}: they must be equal'
        )
    if per_step and merge:
        raise ValueError('per_step=True needs merge=False: outputs of single steps are not merged')
    if local_window is not None and (isinstance(local_window, bool) or local_window < 1):
        raise ValueError(f'local_window is {local_window!r}; allowed are integers from 1, or None for no local scan')


def _check_order(name: str, order: Tensor | None, directions: int, length: int) -> None:
    if order is None:
        return
    if order.dtype not in (torch.int32, torch.int64):
        raise TypeError(f'{name} is {order.dtype}; allowed are torch.int32 and torch.int64')
    if order.ndim != 2 or order.shape[0] != directions:
        raise ValueError(f'{name} has shape {_shape(order)}; expected ({directions}, T), one row per direction')


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _check_positions(order: Tensor | None, length: int) -> None:
    """Reject positions outside [0, length) before a kernel reads there. On a GPU this would wait for the device."""
    if order is not None and order.device.type == 'cpu' and order.numel():
        low, high = order.aminmax()
        if low < 0 or high >= length:
            raise ValueError(f'order visits tokens {int(low)}..{int(high)}; allowed are 0..{length - 1}')


def _module(u: Tensor, delta: Tensor, B: Tensor, order: Tensor | None, window: int, backend: str):
    steps = delta.shape[1] if order is None else order.shape[1]
    name = backend or _dispatch.requested_backend()
    if name == 'reference':
        raise _dispatch.BackendUnavailableError(
            'the reference is plain torch around no op: compiled and scripted code takes it by backend= alone'
        )
    return _dispatch.resolve(name, _dispatch.Problem(u.device.type, u.dtype, B.shape[-1], steps, window))


@torch.library.custom_op('visionssm::selective_scan', mutates_args=())
def _scan_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor | None,
    param_order: Tensor | None,
    delta_softplus: bool,
    mode: int,
    local_window: int,
    return_last_state: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_positions(order, u.shape[1])
    _check_positions(param_order, u.shape[1])
    module = _module(u, delta, B, order, local_window, backend)
    return module.forward(
        u, delta, A, B, C, D, z, delta_bias, order, param_order, delta_softplus, mode, local_window, return_last_state
    )


@_scan_op.register_fake
def _scan_fake(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    order,
    param_order,
    delta_softplus,
    mode,
    local_window,
    return_last_state,
    backend,
):
    batch, _, directions, channels = delta.shape
    state_shape = (batch, directions, channels, B.shape[-1]) if return_last_state else (0,)
    return u.new_empty(output_shape(mode, delta, order)), u.new_empty(state_shape, dtype=state_dtype(u))


@torch.library.custom_op('visionssm::selective_scan_backward', mutates_args=())
def _scan_backward_op(
    grad_out: Tensor | None,
    grad_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor | None,
    param_order: Tensor | None,
    delta_softplus: bool,
    mode: int,
    local_window: int,
    backend: str,
) -> list[Tensor]:
    module = _module(u, delta, B, order, local_window, backend)
    if grad_out is None:
        batch, length, directions, channels = delta.shape
        steps = length if order is None else order.shape[1]
        shapes = (
            (batch, length, channels),
            (batch, length, directions, channels),
            (batch, steps, directions, channels),
        )
        grad_out = u.new_zeros(shapes[mode])
    grads = module.backward(
        grad_out,
        grad_state,
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        order,
        param_order,
        delta_softplus,
        mode,
        local_window,
    )
    return [grad for grad in grads if grad is not None]


@_scan_backward_op.register_fake
def _scan_backward_fake(
    grad_out,
    grad_state,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    order,
    param_order,
    delta_softplus,
    mode,
    local_window,
    backend,
):
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (u, delta, A, B, C, D, z, delta_bias)
        if x is not None
    ]


def _setup_context(ctx, inputs, output) -> None:
    *tensors, softplus, mode, window, _, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = (softplus, mode, window, backend)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_state):
    tensors = ctx.saved_tensors
    if grad_out is None and grad_state is None:
        return (None,) * 15
    grads = torch.ops.visionssm.selective_scan_backward(grad_out, grad_state, *tensors, *ctx.options)
    remaining = iter(grads)
    full = [None if x is None else next(remaining) for x in tensors[:8]]
    return (*full, *(None,) * 7)


_scan_op.register_autograd(_backward, setup_context=_setup_context)


def state_dtype(u: Tensor) -> torch.dtype:
    """The dtype that the state and all arithmetic of the scan of `u` have."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` of mamba-ssm, same arguments and shapes, on any device.

    Args:
        u: (B, D, L).
        delta: (B, D, L).
        A: (D, N), real.
        B: Constant (D, N), per token (B, N, L), or grouped (B, G, N, L) with G dividing D.
        C: As `B`, chosen on its own.
        D: (D,).
        z: Gate before SiLU, (B, D, L).
        delta_bias: (D,).
        delta_softplus: Whether softplus is applied to `delta + delta_bias`.
        return_last_state: Return also the last state, (B, D, N), fp32.

    Returns:
        Output (B, D, L) in the dtype of `u`, or (output, last state).

    Raises:
        ValueError: If shapes do not fit.
        TypeError: If a dtype is not supported; complex `A` is not.

    Source: state-spaces/mamba@e9594ce, `mamba_ssm/ops/selective_scan_interface.py` (signature and shapes).
    """
    if A.is_complex() or B.is_complex() or C.is_complex():
        raise TypeError('A, B or C is complex; selective_scan_fn supports real parameters only')
    if u.ndim != 3 or delta.shape != u.shape:
        raise ValueError(f'u has shape {_shape(u)} and delta {_shape(delta)}; both must be (B, D, L)')
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f'A has shape {_shape(A)}; expected ({channels}, N)')
    d_state = A.shape[1]
    # a constant (D, N) parameter differs by channel: every channel is then a group of its own
    counts = [channels if x.ndim == 2 else 1 if x.ndim == 3 else x.shape[1] for x in (B, C)]
    groups = max(counts)
    for name, x, count in (('B', B, counts[0]), ('C', C, counts[1])):
        shapes = {2: (channels, d_state), 3: (batch, d_state, length), 4: (batch, count, d_state, length)}
        if tuple(x.shape) != shapes.get(x.ndim) or groups % count or channels % count:
            allowed = f'({channels}, {d_state}), ({batch}, {d_state}, {length}) or ({batch}, G, {d_state}, {length})'
            raise ValueError(f'{name} has shape {_shape(x)}; allowed are {allowed}, G dividing {channels}')
    width = channels // groups

    def weights(x: Tensor) -> Tensor:  # -> [B, L, G, N]
        if x.ndim == 2:
            return x.to(u.dtype).expand(batch, length, channels, d_state)
        x = x.unsqueeze(1) if x.ndim == 3 else x
        return x.permute(0, 3, 1, 2).repeat_interleave(groups // x.shape[1], 2)

    def tokens(x: Tensor) -> Tensor:  # [B, D, L] -> [B, L, G, D / G]
        return x.transpose(1, 2).unflatten(2, (groups, width))

    result = selective_scan(
        tokens(u) if groups > 1 else u.transpose(1, 2),
        tokens(delta),
        A.reshape(groups, width, d_state),
        weights(B),
        weights(C),
        None if D is None else D.reshape(groups, width),
        z.transpose(1, 2) if z is not None and groups == 1 else None,
        None if delta_bias is None else delta_bias.reshape(groups, width),
        delta_softplus,
        merge=groups == 1,
        return_last_state=True,
    )
    out, last_state = result
    out = out.reshape(batch, length, channels).transpose(1, 2)
    if z is not None and groups > 1:
        out = out * torch.nn.functional.silu(z)
    return (out, last_state.reshape(batch, channels, d_state)) if return_last_state else out
