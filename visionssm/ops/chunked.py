"""The scan in vectorised torch, for any device: chunks of tokens, log-depth inside a chunk, a state carried between.

Every doubling step multiplies decays and adds products, h[t] = a[t] h[t-1] + b[t], so nothing is divided and nothing
overflows for decays up to 1. Memory beyond inputs and outputs is one row per step and a few tensors of one chunk.

`forward` writes into nothing that it has made, so torch differentiates and batches it in every mode: derivatives of
every backend beyond the first gradient come from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import MERGED, PER_STEP, ScanInputs, gates

_CHUNK_ELEMENTS = 1 << 22  # elements of (B, chunk, K, D, N): 16 MiB in fp32
_PIECE = 16  # steps
_BLOCK = _PIECE**2  # steps, by which they are counted where their number is symbolic


class _Problem(NamedTuple):
    """The tensors of a scan in the working dtype, with `order` and `param_order` as (T, K) int64."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    order: Tensor
    param_order: Tensor
    softplus: bool
    mode: int
    window: int
    chunk: int

    @property
    def slots(self) -> Tensor:
        """Direction numbers (K,), to index the K axis next to token positions."""
        return torch.arange(self.order.shape[1], device=self.order.device)

    def chunks(self) -> Iterator[slice]:
        """The steps in slices of the chunk length."""
        steps = self.order.shape[0]
        return (slice(t, min(t + self.chunk, steps)) for t in range(0, steps, self.chunk))


class _Chunk(NamedTuple):
    """A chunk of c steps: u, raw delta, dt (B, c, K, D); B, C (B, c, K, N); decay a and input b (B, c, K, D, N)."""

    u: Tensor
    raw: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    a: Tensor
    b: Tensor


def _prepare(inputs: ScanInputs) -> _Problem:
    batch, _, directions, channels = inputs.delta.shape
    window = inputs.local_window
    chunk = 16
    while chunk < 256 and 2 * chunk * max(batch * directions * channels * inputs.B.shape[-1], 1) <= _CHUNK_ELEMENTS:
        chunk *= 2
    if window:
        chunk = -(-chunk // window) * window
    return _problem(inputs, chunk)


def _problem(inputs: ScanInputs, chunk: int) -> _Problem:
    inputs = inputs.with_limits()
    length, directions = inputs.delta.shape[1:3]
    order, window = inputs.order, inputs.local_window
    if order is None:
        order = torch.arange(length, device=inputs.u.device).expand(directions, length)
    param_order = order if inputs.param_order is None else inputs.param_order
    cast = [None if x is None else x.to(inputs.work_dtype) for x in inputs.tensors]
    return _Problem(*cast, order.long().t(), param_order.long().t(), inputs.delta_softplus, inputs.mode, window, chunk)


def _load(scan: _Problem, at: slice) -> _Chunk:
    tokens, params, k = scan.order[at], scan.param_order[at], scan.slots
    u = scan.u[:, tokens, k] if scan.u.ndim == 4 else scan.u[:, tokens]
    raw = scan.delta[:, params, k]
    if scan.delta_bias is not None:
        raw = raw + scan.delta_bias
    dt = F.softplus(raw) if scan.softplus else raw
    B, C = scan.B[:, params, k], scan.C[:, params, k]
    a = torch.exp(dt.unsqueeze(-1) * scan.A)
    b = (dt * u).unsqueeze(-1) * B.unsqueeze(3)
    return _Chunk(u, raw, dt, B, C, a, b)


def _scan_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(cumulative products of a, h) of h[t] = a[t] h[t-1] + b[t] along dim 1, from h = 0, by doubling."""
    span = 1
    while span < b.shape[1]:
        b = torch.cat((b[:, :span], b[:, span:] + a[:, span:] * b[:, :-span]), 1)
        a = torch.cat((a[:, :span], a[:, span:] * a[:, :-span]), 1)
        span *= 2
    return a, b


def _scan_backward(a: Tensor, b: Tensor) -> Tensor:
    """The same from the right: h[t] = a[t] h[t+1] + b[t], from h = 0."""
    return _scan_forward(a.flip(1), b.flip(1))[1].flip(1)


def _shift(x: Tensor, by: int, fill: Tensor | None = None) -> Tensor:
    """Move x along dim 1 by one step (+1: x[t-1] at t, -1: x[t+1] at t), with `fill` or 0 at the free end."""
    edge = torch.zeros_like(x[:, :1]) if fill is None else fill.unsqueeze(1)
    return torch.cat((edge, x[:, :-1]), 1) if by > 0 else torch.cat((x[:, 1:], edge), 1)


def _windows(x: Tensor, window: int) -> Tensor:
    """(B, c, ...) -> (B c', w, ...), padded with 0 (a decay of 0 and an input of 0 leave nothing)."""
    pad = -x.shape[1] % window
    x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, pad])
    return x.reshape(x.shape[0] * (x.shape[1] // window), window, *x.shape[2:])


def _unwindow(x: Tensor, like: Tensor) -> Tensor:
    windows = -(-like.shape[1] // x.shape[1])
    return x.reshape(like.shape[0], windows * x.shape[1], *x.shape[2:])[:, : like.shape[1]]


def _look_ahead(chunk: _Chunk, window: int) -> Tensor:
    """r[t+1] of the local backward scan r[t] = a[t] r[t+1] + b[t], 0 past each window, (B, c, K, D, N)."""
    r = _scan_backward(_windows(chunk.a, window), _windows(chunk.b, window))
    return _unwindow(_shift(r, -1), chunk.b)


def _states(scan: _Problem, chunk: _Chunk, start: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Forward states, what the output reads (states plus the local backward scan), and r[t+1] of the latter."""
    decay, h = _scan_forward(chunk.a, chunk.b)
    h = h + decay * start.unsqueeze(1)
    if not scan.window:
        return h, h, None
    ahead = _look_ahead(chunk, scan.window)
    return h, h + chunk.a * ahead, ahead


def _output(scan: _Problem, chunk: _Chunk, read: Tensor) -> Tensor:
    """C . state + D u, before the gate, (B, c, K, D)."""
    y = torch.einsum('bckdn,bckn->bckd', read, chunk.C)
    return y if scan.D is None else y + scan.D * chunk.u


def _scatter(out: Tensor, at: Tensor, value: Tensor, k: Tensor | None) -> None:
    """Add value (B, c, K, X) to out (B, L, X) at tokens `at` (c, K), or to out (B, L, K, X) at (token, direction)."""
    if k is not None:
        at = at * out.shape[2] + k
        out = out.flatten(1, 2)
    out.index_add_(1, at.reshape(-1), value.flatten(1, 2))


def forward(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output in the dtype of `u`, and the last state."""
    scan = _prepare(inputs)
    batch, length, directions, channels = inputs.delta.shape
    state = scan.u.new_zeros(batch, directions, channels, inputs.B.shape[-1])
    rows = [scan.u.new_zeros(batch, 0, directions, channels)]
    for at in scan.chunks():
        chunk = _load(scan, at)
        h, read, _ = _states(scan, chunk, state)
        rows.append(_output(scan, chunk, read))
        state = h[:, -1]
    last = state if inputs.return_last_state else state.new_empty(0)
    return _returned(scan, inputs, torch.cat(rows, 1), inputs.order), last


def forward_at_once(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """The same, all steps at once, by operators that do not depend on any size but `_PIECE`; sizes may be symbolic."""
    scan, inside = _problem(inputs, 0), None
    steps = scan.order.shape[0]
    if isinstance(steps, torch.SymInt):
        scan, inside = _in_blocks(scan)
    all_steps = _load(scan, slice(None))
    a, b = all_steps.a, all_steps.b
    if inside is not None:  # past the end the state stays as it is
        a, b = torch.where(inside, a, 1.0), torch.where(inside, b, 0.0)
    h = read = _by_pieces(a, b)
    if inputs.local_window != 0:
        t = torch.arange(1, h.shape[1] + 1, device=h.device).view(-1, 1, 1, 1)
        linked = a * (t % inputs.local_window != 0)
        ahead = _by_pieces(linked.flip(1), b.flip(1)).flip(1)
        read = h + linked * _shift(ahead, -1)
    last = h[:, -1] if inputs.return_last_state else h.new_empty(0)
    out = (read * all_steps.C.unsqueeze(3)).sum(-1)  # an einsum would ask how symbolic strides compare
    out = out if scan.D is None else out + scan.D * all_steps.u
    if inside is None:  # programs of models visit all tokens
        return _returned(scan, inputs, out, None), last
    # what is added to a token once more is nothing
    out = _returned(scan, inputs, torch.where(inside.squeeze(-1), out, 0.0), None)
    return out.narrow(1, 0, steps) if scan.mode == PER_STEP else out, last


def _in_blocks(scan: _Problem) -> tuple[_Problem, Tensor]:
    """The scan filled up to a multiple of `_BLOCK` steps, and which of them are its own, (T, 1, 1, 1).

    The number of blocks is read from a tensor: torch computes with it as with an unknown. What it is made of (halves,
    rounded up, of a height times a width) would otherwise be carried through, and simplified in, every shape below.
    """
    steps = scan.order.shape[0]
    blocks = torch.full((), -(-steps // _BLOCK), dtype=torch.int64).item()
    torch._check(blocks >= 1)
    t = torch.arange(blocks * _BLOCK, device=scan.u.device)
    at = torch.where(t < steps, t, 0)
    orders = {name: getattr(scan, name).index_select(0, at) for name in ('order', 'param_order')}
    return scan._replace(**orders), (t < steps).view(-1, 1, 1, 1)


def _by_pieces(a: Tensor, b: Tensor, levels: int = 2) -> Tensor:
    """States h[t] = a[t] h[t-1] + b[t] along dim 1, from h = 0: pieces from zero, then what each really starts from."""
    if not isinstance(b.shape[1], int) and not levels:
        return _by_all_before(a, b)
    # a program's views are of the strides that were traced, and convolutions choose theirs anew
    a, b = (x.clone(memory_format=torch.contiguous_format) for x in (a, b))
    if isinstance(b.shape[1], int) and b.shape[1] <= _PIECE:
        return _scan_forward(a, b)[1]
    decay, h = _scan_forward(_windows(a, _PIECE), _windows(b, _PIECE))
    ends, pass_on = (x[:, -1].unflatten(0, (b.shape[0], -(-b.shape[1] // _PIECE))) for x in (h, decay))
    starts = _shift(_by_pieces(pass_on, ends, levels - 1), 1)
    return _unwindow(h + decay * starts.flatten(0, 1).unsqueeze(1), b)


def _by_all_before(a: Tensor, b: Tensor) -> Tensor:
    """The same by a sum over all steps before, T^2 of them, which takes few operators: for the last level."""
    t = torch.arange(b.shape[1], device=b.device)
    after = (t.unsqueeze(1) > t).view(1, *2 * b.shape[1:2], 1, 1, 1)  # [i, j]: i > j
    decay = torch.where(after, a.unsqueeze(2), 1.0).log().cumsum(1).exp()  # of all steps from j + 1 to i
    return torch.where(after | (t.unsqueeze(1) == t).view(after.shape), decay * b.unsqueeze(1), 0.0).sum(2)


def _returned(scan: _Problem, inputs: ScanInputs, out: Tensor, order: Tensor | None) -> Tensor:
    """What the scan returns of the outputs of its steps, (B, T, K, D); `order` None: every token is visited."""
    batch, length, directions, channels = inputs.delta.shape
    if scan.mode == PER_STEP:
        return (out if scan.z is None else out * F.silu(scan.z[:, scan.order])).to(inputs.u.dtype)
    if scan.mode == MERGED:
        out = scan.u.new_zeros(batch, length, channels).index_add(1, scan.order.flatten(), out.flatten(1, 2))
    else:
        at = (scan.order * directions + scan.slots).flatten()
        out = scan.u.new_zeros(batch, length * directions, channels).index_add(1, at, out.flatten(1, 2))
        out = out.unflatten(1, (length, directions))
    if scan.z is not None:
        out = out * F.silu(gates(scan.z, order, scan.mode == MERGED))
    return out.to(inputs.u.dtype)


def backward(grads: tuple[Tensor, Tensor | None], inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs.tensors`, each in its dtype, from those of output and last state."""
    scan = _prepare(inputs)
    mode, window = scan.mode, scan.window
    batch, _, directions, channels = inputs.delta.shape
    grad_out, grad_state = grads[0].to(scan.u.dtype), grads[1]
    results = [None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in scan[:8]]
    du, ddelta, dA, dB, dC, dD, dz, dbias = results

    starts = []  # the state before each chunk
    state = scan.u.new_zeros(batch, directions, channels, scan.B.shape[-1])
    for at in scan.chunks():
        starts.append(state)
        chunk = _load(scan, at)
        decay, h = _scan_forward(chunk.a, chunk.b)
        state = h[:, -1] + decay[:, -1] * state

    carry = torch.zeros_like(state) if grad_state is None else grad_state.to(scan.u.dtype)
    k = scan.slots
    for at, start in reversed(list(zip(scan.chunks(), starts, strict=True))):
        tokens, params = scan.order[at], scan.param_order[at]
        chunk = _load(scan, at)
        h, read, ahead = _states(scan, chunk, start)
        if mode == PER_STEP:
            dy = grad_out[:, at]
        else:
            dy = grad_out[:, tokens] if mode == MERGED else grad_out[:, tokens, k]
        if scan.z is not None:
            gate = scan.z[:, tokens]
            sigmoid = torch.sigmoid(gate)
            slope = sigmoid * (1 + gate * (1 - sigmoid))  # of SiLU
            _scatter(dz, tokens, dy * _output(scan, chunk, read) * slope, None)
            dy = dy * gate * sigmoid

        # adjoint: c[t] of what the output reads, g[t] of the forward state, q[t] of the local backward scan
        c = dy.unsqueeze(-1) * chunk.C.unsqueeze(3)
        _scatter(dC, params, torch.einsum('bckdn,bckd->bckn', read, dy), k)
        seed = c.clone()
        seed[:, -1] += carry
        g = _scan_backward(_shift(chunk.a, -1), seed)
        carry = chunk.a[:, 0] * g[:, 0]
        previous = _shift(h, 1, start)
        db, da = g, g * previous
        if ahead is not None:
            a_w = _windows(chunk.a, window)
            before = _shift(a_w, 1)
            q = _scan_forward(before, before * _shift(_windows(c, window), 1))[1]
            q = _unwindow(q, c)
            db, da = g + q, da + ahead * (c + q)

        weighted = torch.einsum('bckdn,bckn->bckd', db, chunk.B)  # d loss / d (dt u)
        decay_grad = da * chunk.a  # d loss / d (dt A)
        if scan.A.shape[-1] == 1:
            decay_grad = decay_grad.sum(-1, keepdim=True)
        ddt = (decay_grad * scan.A).sum(-1) + weighted * chunk.u
        _scatter(dB, params, torch.einsum('bckdn,bckd->bckn', db, chunk.dt * chunk.u), k)
        dA += torch.einsum('bckdn,bckd->kdn', decay_grad, chunk.dt)
        u_grad = weighted * chunk.dt
        if scan.D is not None:
            u_grad = u_grad + scan.D * dy
            dD += (dy * chunk.u).sum((0, 1))
        _scatter(du, tokens, u_grad, k if scan.u.ndim == 4 else None)
        if scan.softplus:
            ddt = ddt * torch.where(chunk.raw > 20, 1.0, torch.sigmoid(chunk.raw))  # F.softplus is linear past 20
        if dbias is not None:
            dbias += ddt.sum((0, 1))
        _scatter(ddelta, params, ddt, k)
    return inputs.like_inputs(tuple(results))
