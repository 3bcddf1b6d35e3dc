"""The scan in plain operators, for ONNX files.

Step t = (s * M2 + m2) * M1 + m1. Walks of M1 steps run side by side, twice: from a state of zero, to learn where each
ends, then from its true start, which a second level of walks over those ends gives (M2), and a third over theirs (S).
Walks are written out: there is no loop in the program, and every operator works on a large tensor. Only decays
exp(dt A) <= 1 are multiplied, so nothing is divided and nothing overflows. Where S is not known when the program is
made, the third level doubles its span instead, often enough for 2^24 steps.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import MERGED, PER_DIRECTION, PER_STEP

_WALK = 16  # steps of a walk
_DOUBLINGS = 17
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
    return_last_state: bool,
) -> tuple[Tensor, Tensor]:
    """What the op `visionssm::selective_scan` computes; `local_window` may be symbolic."""
    dtype = u.dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    batch, length = delta.shape[0], delta.shape[1]
    K, heads, N, channels = _fixed(delta.shape[2], delta.shape[3], B.shape[3], u.shape[-1])
    u, delta, A, B, C = (x.to(work) for x in (u, delta, A, B, C))
    order = torch.arange(length, device=u.device).expand(K, -1) if order is None else order.long()
    params = order if param_order is None else param_order.long()
    steps = order.shape[1]

    dt = delta if delta_bias is None else delta + delta_bias.to(work)
    if delta_softplus:
        dt = softplus(dt) if work == torch.float32 else F.softplus(dt)
    if heads != channels:
        dt = dt.unsqueeze(-1).expand(-1, -1, -1, -1, channels // heads).reshape(batch, length, K, channels)
        A = A.repeat_interleave(channels // heads, 1)

    # where every step stands: [M1, M2, S], flat
    windowed = not isinstance(local_window, int) or local_window > 0
    walk = local_window * max(1, _WALK // local_window) if isinstance(local_window, int) and windowed else _WALK
    walks = (steps + walk - 1) // walk  # rounded up without negative numbers: ONNX rounds their quotients to 0
    known = not torch.jit.is_tracing() and isinstance(steps, int)
    M2 = 8 if not known else 1 if walks <= 20 else math.ceil(math.sqrt(walks))
    S = (walks + M2 - 1) // M2
    s, m2, m1 = (torch.arange(size, device=u.device) for size in (S, M2, walk))
    t = ((s * M2 + m2[:, None]) * walk + m1[:, None, None]).flatten()
    inside = t < steps
    at = torch.where(inside, t, 0)
    token, param = order.t().index_select(0, at), params.t().index_select(0, at)  # [steps, K]
    k = torch.arange(K, device=u.device)

    def walked(x: Tensor, places: Tensor, *last: int) -> Tensor:  # (B, L, K, X) -> [B, M1, M2, S, K, *last]
        taken = x.flatten(1, 2).index_select(1, (places * K + k).flatten())
        return taken.reshape(batch, walk, M2, -1, K, *last)

    if u.ndim == 4:
        u = walked(u, token, 1, channels)
    else:
        u = u.index_select(1, token.flatten()).reshape(batch, walk, M2, -1, K, 1, channels)
    dt, B, C = walked(dt, param, 1, channels), walked(B, param, N, 1), walked(C, param, 1, N)
    if windowed or return_last_state:  # steps past the end change nothing then
        dt = dt * inside.to(work).view(walk, M2, -1, 1, 1, 1)
    A = A.transpose(1, 2)
    reads = C.split(1, 1)
    a = [torch.exp(x * A) for x in dt.split(1, 1)]  # [B, 1, M2, S, K, N, D] each, N of A
    b = [x * y for x, y in zip((dt * u).split(1, 1), B.split(1, 1), strict=True)]

    end = b[0]
    for m in range(1, walk):
        end = a[m] * end + b[m]
    state = _starts(torch.exp(dt.sum(1, keepdim=True) * A), end, M2, S if known else None)
    ahead = _ahead(a, b, local_window) if windowed else None
    outputs = []
    for m in range(walk):
        state = a[m] * state + b[m]
        read = state if ahead is None else state + ahead[m]
        outputs.append(read * reads[m] if N == 1 else reads[m] @ read)
    y = torch.cat(outputs, 1)
    if D is not None:
        y = y + u * D.to(work).unsqueeze(1)
    if z is not None and mode != MERGED:
        y = y * F.silu(z.to(work)).index_select(1, token.flatten()).reshape(y.shape)
    last = state[:, 0, -1, -1].transpose(2, 3) if return_last_state else u.new_empty(0)
    if mode == PER_STEP:
        y = y.permute(0, 3, 2, 1, 4, 5, 6).reshape(batch, -1, K, channels)
        return y[:, :steps].to(dtype), last

    token = torch.where(inside[:, None], token, length)  # a row to be cut off takes what is past the end
    rows = length + 1
    if mode == PER_DIRECTION:
        token, rows = token * K + k, rows * K
    index = torch.arange(batch, device=u.device)[:, None] * rows + token.flatten()
    out = add_rows(batch * rows, index.flatten(), y.reshape(-1, channels))
    if mode == PER_DIRECTION:
        return out.reshape(batch, -1, K, channels)[:, :length].to(dtype), last
    out = out.reshape(batch, -1, channels)[:, :length]
    return (out if z is None else out * F.silu(z.to(work))).to(dtype), last


def _ahead(a: list[Tensor], b: list[Tensor], window: int | Tensor) -> list[Tensor]:
    """What the local backward scan adds to the state of every step of a walk, which holds whole windows."""
    sums, r = [], torch.zeros_like(b[0])
    for m in reversed(range(len(a))):
        q = a[m] * r * ((m + 1) % window != 0)
        sums.append(q)
        r = q + b[m]
    return sums[::-1]


def add_rows(count: int, index: Tensor, rows: Tensor) -> Tensor:
    """Zeros (count, D) with every row of `rows` (R, D) added at its `index` (R,)."""
    out = rows.new_zeros(count, rows.shape[1])
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        return _AddRows.apply(out, index, rows)
    return out.index_put((index,), rows, accumulate=True)


def add_tokens(length: int, index: Tensor, tokens: Tensor) -> Tensor:
    """Zeros (B, L, D) with every token of (B, T, D) added at its `index` (T,), so that every exporter adds all."""
    batch, channels = tokens.shape[0], tokens.shape[2]
    places = torch.arange(batch, device=tokens.device)[:, None] * length + index.long()
    return add_rows(batch * length, places.flatten(), tokens.reshape(-1, channels)).reshape(batch, length, channels)


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


def _starts(decay: Tensor, end: Tensor, M2: int, S: int | None) -> Tensor:
    """The states that walks start from, [B, 1, M2, S, ...], of their decays and of where they end from zero."""
    if M2 == 1:
        return _level(decay, end, S)
    a, b = decay.split(1, 2), end.split(1, 2)
    h, total = b[0], a[0]
    for m in range(1, M2):
        h, total = a[m] * h + b[m], a[m] * total
    h = _level(total, h, S)
    starts = [h]
    for m in range(M2 - 1):
        h = a[m] * h + b[m]
        starts.append(h)
    return torch.cat(starts, 2)


def _level(a: Tensor, h: Tensor, S: int | None) -> Tensor:
    """The same along axis 3 of S entries; None: of any number."""
    if S is not None:
        state = torch.zeros_like(h[:, :, :, :1])
        starts = [state]
        for x, y in list(zip(a.split(1, 3), h.split(1, 3), strict=True))[:-1]:
            state = x * state + y
            starts.append(state)
        return torch.cat(starts, 3)
    size, rest = h.shape[3], [0, 0] * (h.ndim - 4)
    for i in range(_DOUBLINGS):
        pad = [*rest, 2**i, 0]
        h = h + a * F.pad(h, pad).narrow(3, 0, size)
        a = a * F.pad(a, pad, value=1.0).narrow(3, 0, size)
    return F.pad(h, [*rest, 1, 0]).narrow(3, 0, size)


def _fixed(*sizes) -> list[int]:
    """Sizes that are the same for all inputs as numbers; a tracer gives tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        return [int(size) for size in sizes]
