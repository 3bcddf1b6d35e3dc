"""The scan in plain operators, for ONNX files.

Steps are walked by ONNX's `Scan`, whose body is a handful of operators on all channels, states and directions of one
step. Where that is too few numbers to be worth a step's overhead, the walk is cut into pieces that are walked side by
side: each from a state of zero, with the decay since its start beside the state. A second, short `Scan` over the ends
of the pieces gives the states that they really start from, which the decays then add to what the steps put out. Only
decays exp(dt A) <= 1 are multiplied, so nothing is divided and nothing overflows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import MERGED, PER_DIRECTION, PER_STEP

_WIDE = 2048  # numbers per step from which steps are walked one after the other
_PIECE = 32  # steps of a piece where the length of the walk is not known
_DIMS = 5  # of what a step sees: pieces, directions, batch, states, channels
# log((1 + z) / (1 - z)) / z in powers of z^2 up to 1/9, to 2e-7
_LOG = (1.99999967, 0.66676003, 0.39589461, 0.34226051)


def wants_plain() -> bool:
    """Whether an ONNX exporter runs, which takes operators of torch alone."""
    return torch.onnx.is_in_onnx_export()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to 2e-7 of its value: onnxruntime's Softplus takes four times as long and loses small values."""
    e = torch.exp(-x.abs())
    z = e / (e + 2)  # log(1 + e) = log((1 + z) / (1 - z))
    square = z * z
    series = square * _LOG[3] + _LOG[2]
    for coefficient in (_LOG[1], _LOG[0]):
        series = series * square + coefficient
    return x.relu() + z * series


def scan(
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
    local_window: int | Tensor,
) -> Tensor:
    """The output of the op `visionssm::selective_scan`; `local_window` may be symbolic."""
    dtype = u.dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    batch, length = delta.shape[0], delta.shape[1]
    K, heads, N, channels = _fixed(delta.shape[2], delta.shape[3], B.shape[3], u.shape[-1])
    u, delta, A, B, C = (x.to(work) for x in (u, delta, A, B, C))

    dt = delta if delta_bias is None else delta + delta_bias.to(work)
    if delta_softplus:
        dt = softplus(dt) if work == torch.float32 else F.softplus(dt)
    if heads != channels:
        dt = dt.unsqueeze(-1).expand(-1, -1, -1, -1, channels // heads).reshape(batch, length, K, channels)
        A = A.repeat_interleave(channels // heads, 1)

    # 1. Where each step stands: step s * piece + m of the walk is step m of piece s
    windowed = not isinstance(local_window, int) or local_window > 0
    steps = length if order is None else order.shape[1]
    pieces, token, param = 1, None, None
    if windowed or N * K * channels >= _WIDE:
        piece = steps
    else:
        known = torch.jit.is_tracing() or isinstance(steps, int)  # a tracer knows that of its example
        piece = max(1, math.isqrt(_fixed(steps)[0])) if known else _PIECE
        pieces = (steps + piece - 1) // piece  # rounded up without negative numbers: ONNX rounds their quotients to 0
    if order is not None or param_order is not None or not isinstance(pieces, int) or pieces > 1:
        t = torch.arange(piece * pieces, device=u.device).reshape(pieces, piece).t().flatten()
        inside = t < steps
        at = torch.where(inside, t, 0)
        token = at.unsqueeze(1).expand(-1, K) if order is None else order.long().t().index_select(0, at)  # [steps, K]
        param = token if param_order is None else param_order.long().t().index_select(0, at)
    k = torch.arange(K, device=u.device)

    def walked(x: Tensor, places: Tensor | None) -> Tensor:  # (B, L, K, X) -> [piece, pieces, K, B, 1, X]
        if places is None:
            return x.permute(1, 2, 0, 3).reshape(piece, 1, K, batch, 1, x.shape[3])
        rows = x.permute(2, 1, 0, 3).flatten(0, 1).index_select(0, (places + k * length).flatten())
        return rows.reshape(piece, pieces, K, batch, 1, x.shape[3])

    if u.ndim == 4:
        x = walked(u, token)
    elif token is None:
        x = u.transpose(0, 1).reshape(piece, 1, 1, batch, 1, channels).expand(-1, -1, K, -1, -1, -1)
    else:
        x = u.transpose(0, 1).index_select(0, token.flatten()).reshape(piece, pieces, K, batch, 1, channels)
    dt, C = walked(dt, param), walked(C, param)
    B = walked(B, param).transpose(4, 5)  # [.., N, 1]
    A = A.transpose(1, 2).unsqueeze(1)  # [K, 1, N, D]

    # 2. The recurrence
    def read(weights, state):
        return weights * state if N == 1 else weights @ state

    def step(rates, h, dt, u, B, C):
        h = (dt * rates).exp() * h + B * (dt * u)
        return h, read(C, h)

    def step_of_piece(rates, h, total, dt, u, B, C):
        decay = (dt * rates).exp()
        h, total = decay * h + B * (dt * u), decay * total
        return h, total, read(C, h), (C * total if N == 1 else C.transpose(-1, -2) * total)

    def step_back(rates, r, dt, u, B, C, linked):
        q = (dt * rates).exp() * r * linked
        return q + B * (dt * u), read(C, q)

    def step_over(h, total, end):
        h = total * h + end
        return h, h.clone()

    zero = torch.zeros_like(dt[0] * B[0])  # OpenVINO rejects computed sizes that it cannot bound
    if isinstance(pieces, int) and pieces == 1:
        y = walk(step, [A], [zero], [dt, x, B, C])[1]
    else:
        end, total, y, reach = walk(step_of_piece, [A], [zero, torch.ones_like(zero)], [dt, x, B, C])
        starts = walk(step_over, [], [zero[0]], [total, end])[1]
        starts = torch.cat([zero[:1], starts[:-1]])
        y = y + (reach * starts if N == 1 else (reach * starts).sum(-2, keepdim=True))
    if windowed:
        linked = (torch.arange(1, steps + 1, device=u.device) % local_window != 0).to(work)
        linked = linked.reshape(piece, 1, 1, 1, 1, 1)
        y = y + walk(step_back, [A], [zero], [dt, x, B, C, linked], reverse=True)[1]
    if D is not None:
        y = y + x * D.to(work)[:, None, None]
    y = y.reshape(piece * pieces, K, batch, channels)

    # 3. Back to the tokens
    if z is not None and mode != MERGED:
        gate = F.silu(z.to(work)).transpose(0, 1)
        y = y * (gate.unsqueeze(1) if token is None else gate.index_select(0, token.flatten()).reshape(y.shape))
    if mode == PER_STEP or token is None:
        y = y.reshape(piece, pieces, K, batch, channels).transpose(0, 1).flatten(0, 1)[:steps].permute(2, 0, 1, 3)
        if mode == MERGED:
            y = y.sum(2)
            y = y if z is None else y * F.silu(z.to(work))
        return y.to(dtype)
    token = torch.where(inside[:, None], token, length)
    rows = y.reshape(piece * pieces, K, batch * channels)
    if mode == PER_DIRECTION:
        out = add_rows(length, token, rows, merge=False)
        return out.reshape(length, K, batch, channels).permute(2, 0, 1, 3).to(dtype)
    out = add_rows(length, token, rows).reshape(length, batch, channels).transpose(0, 1)
    return (out if z is None else out * F.silu(z.to(work))).to(dtype)


# ---- loops ---------------------------------------------------------------------------------------------------------


def walk(
    step: Callable[..., tuple], fixed: Sequence[Tensor], start: Sequence[Tensor], inputs: Sequence[Tensor],
    reverse: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Call `step(*fixed, *state, *inputs[t])` for every t, as one node of the ONNX graph.

    Args:
        step: Gives the next state and the step's outputs, by `+`, `*`, `@`, `exp`, `clone` and `transpose(-1, -2)`.
        fixed: What is the same in all steps.
        start: The first state.
        inputs: Cut along their first axis.
        reverse: From the last step to the first.

    Returns:
        The last state, and the outputs stacked along a new first axis.
    """
    if torch.onnx.is_in_onnx_export() and torch.jit.is_tracing():
        return _Walk.apply(step, len(fixed), len(start), reverse, *fixed, *start, *inputs)
    if torch.onnx.is_in_onnx_export():
        if reverse:
            inputs = [x.flip(0) for x in inputs]

        def body(*arguments):  # state, inputs, fixed
            count = len(arguments) - len(fixed)
            out = step(*arguments[count:], *arguments[:count])
            return [*map(_laid_out, out[: len(start)]), *out[len(start) :]]

        given = [list(map(_laid_out, tensors)) for tensors in (start, inputs)]
        out = torch.ops.higher_order.scan(body, *given, list(fixed))
        state, stacked = out[: len(start)], out[len(start) :]
        return *state, *(x.flip(0) if reverse else x for x in stacked)
    return _walk(step, len(fixed), len(start), reverse, *fixed, *start, *inputs)


def _laid_out(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)  # torch's scan wants states of the same strides at all steps


def _walk(step, fixed, states, reverse, *tensors) -> tuple[Tensor, ...]:
    state, inputs = tensors[fixed : fixed + states], tensors[fixed + states :]
    count, outputs = _fixed(inputs[0].shape[0])[0], []
    for t in reversed(range(count)) if reverse else range(count):
        out = step(*tensors[:fixed], *state, *(x[t] for x in inputs))
        state = out[:states]
        outputs.append(out[states:])
    return *state, *(torch.stack(x) for x in zip(*(outputs[::-1] if reverse else outputs), strict=True))


class _Walk(torch.autograd.Function):
    """`walk` for the tracing ONNX exporter, which has no operator for a loop with a body of its own."""

    @staticmethod
    def forward(ctx, step, fixed, states, reverse, *tensors):
        """Take one step: the tracer would record them all, and only sees what the result looks like."""
        count, inputs = tensors[-1].shape[0], tensors[fixed + states :]
        out = step(*tensors[: fixed + states], *(x[0] for x in inputs))
        return *out[:states], *(x.unsqueeze(0).expand(count, *x.shape) for x in out[states:])

    @staticmethod
    def symbolic(g, step, fixed, states, reverse, *tensors):
        """As ONNX has it: what is fixed is a state that stays."""
        body = torch._C.Graph()
        values = [_Value(body, body.addInput()) for _ in tensors]
        for value, tensor in zip(values, tensors, strict=True):
            value.name.setType(torch._C.TensorType.get().with_dtype(tensor.type().dtype()))
        out = [_Value(body, value.name).clone() for value in values[:fixed]] + list(step(*values))
        for value in out:
            body.registerOutput(value.name)
        inputs, outputs = len(tensors) - fixed - states, len(out) - fixed - states
        results = g.op(
            'Scan', *tensors, body_g=body, num_scan_inputs_i=inputs, scan_input_directions_i=[int(reverse)] * inputs,
            scan_output_directions_i=[int(reverse)] * outputs, outputs=len(out),
        )  # fmt: skip
        return results[fixed:]


class _Value:
    """A value of the body that the tracing exporter writes; what is done with it becomes a node there."""

    def __init__(self, graph: Any, name: Any) -> None:
        self.graph, self.name = graph, name

    def _node(self, kind: str, *others: _Value) -> _Value:
        node = self.graph.insertNode(self.graph.create(f'onnx::{kind}', [self.name, *(x.name for x in others)]))
        return _Value(self.graph, node.output())

    def __add__(self, other):
        return self._node('Add', other)

    def __mul__(self, other):
        return self._node('Mul', other)

    def __matmul__(self, other):
        return self._node('MatMul', other)

    def exp(self):
        return self._node('Exp')

    def clone(self):
        return self._node('Identity')

    def transpose(self, *axes):
        last = list(range(_DIMS))
        last[axes[0]], last[axes[1]] = last[axes[1]], last[axes[0]]
        out = self._node('Transpose')
        out.name.node().is_('perm', last)
        return out


# ---- sums ----------------------------------------------------------------------------------------------------------


def add_rows(length: int, token: Tensor, rows: Tensor, merge: bool = True) -> Tensor:
    """Rows (T, K, D) added up at their tokens (T, K), a token of `length` dropping its row: (L, D), or (L, K, D).

    onnxruntime adds rows of the same place on several threads at once and loses some (its issue 18048), so that no node
    may get a place twice. Of the steps of a direction that share a token, one is added after the other, as often as
    that happens in the example that a tracer sees; what is left at other sizes goes through `ScatterElements`, which is
    slow and runs on one thread.
    """
    steps, channels = rows.shape[0], rows.shape[2]
    K = _fixed(rows.shape[1])[0]
    k, t = torch.arange(K, device=token.device), torch.arange(steps, device=token.device)
    t = t.unsqueeze(1).expand(-1, K)
    out = rows.new_zeros((length + 1) * (1 if merge else K), channels)
    visits = 1
    if torch.jit.is_tracing():
        once = torch.zeros(length + 1, K, dtype=t.dtype, device=t.device).scatter_add(0, token, torch.ones_like(t))
        visits = max(1, *_fixed(once[:length].max()))
    left = token < length
    for _ in range(visits):
        at = torch.where(left, token, length)
        last = torch.zeros(length + 1, K, dtype=t.dtype, device=t.device).scatter(0, at, t)
        chosen = left & (last.gather(0, token) == t)
        at, left = torch.where(chosen, token, length), left & ~chosen
        if merge:
            for direction in range(K):
                out = _add_at(out, at[:, direction], rows[:, direction])
        else:
            out = _add_at(out, (at * K + k).flatten(), rows.flatten(0, 1))
    place = (token if merge else token * K + k).flatten()
    if torch.jit.is_tracing():
        # one row more, which is dropped, and whose place hangs on the data: OpenVINO has no NonZero of constants
        rest = torch.cat([left.flatten(), rows.flatten()[:1].abs() >= 0]).nonzero().flatten()
        at = rest.clamp(max=steps * K - 1)
        place = torch.where(rest < steps * K, place.index_select(0, at), out.shape[0] - 1)
        rest = rows.flatten(0, 1).index_select(0, at)
    else:  # torch.export takes no sizes that hang on the data into loops
        rest = torch.where(left.unsqueeze(2), rows, 0).flatten(0, 1)
    out = out.scatter_add(0, place.unsqueeze(1).expand(-1, channels), rest)
    return out[:length] if merge else out[: length * K].reshape(length, K, channels)


def add_tokens(length: int, order: Tensor, tokens: Tensor) -> Tensor:
    """Zeros (B, L, D) with every step (B, T, K, D) of walks added at its token in `order` (K, T)."""
    batch, steps, K, channels = tokens.shape
    rows = tokens.permute(1, 2, 0, 3).reshape(steps, K, batch * channels)
    return add_rows(length, order.long().t(), rows).reshape(length, batch, channels).transpose(0, 1)


def _add_at(out: Tensor, place: Tensor, rows: Tensor) -> Tensor:
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        return _AddRows.apply(out, place, rows)
    return out.index_put((place,), rows, accumulate=True)


class _AddRows(torch.autograd.Function):
    """`index_add` along axis 0 for the tracing ONNX exporter, which would add rows of one index only once."""

    @staticmethod
    def forward(ctx, out, index, rows):
        """Add."""
        return out.index_add(0, index, rows)

    @staticmethod
    def symbolic(g, out, index, rows):
        """As ONNX has it."""
        index = g.op('Unsqueeze', index, g.op('Constant', value_t=torch.tensor([1])))
        return g.op('ScatterND', out, index, rows, reduction_s='add').setType(out.type())


def _fixed(*sizes) -> list[int]:
    """Sizes as numbers: those that are the same for all inputs; a tracer gives tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        return [int(size) for size in sizes]
