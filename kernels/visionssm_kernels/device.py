"""Device code of the selective scan; `selective_scan.py` launches it.

One program walks one (batch, direction, channel block), or one chunk of it, in time. At step t it visits token p and
takes its parameters from token q; A, B, C, h, r, g and q are over N states, u, dt, y and D over channels:

    forward        x[t] = delta[q] + bias;   dt[t] = softplus(x[t]);   a[t] = exp(dt[t] A)
        (1)        h[t] = a[t] h[t-1] + dt[t] B[q] u[p]
        (2)        r[t] = a[t] r[t+1] + dt[t] B[q] u[p]      local window: from the right, restarts in every run
        (3)        s[t] = h[t] + a[t] r[t+1]
        (4)        y[t] = C[q] . s[t] + D u[p];   out[p] += y[t] SiLU(z[p])
    backward       dout is the gradient of out[p]
        (5)        dz[p] += dout y[t] SiLU'(z[p]);   dy[t] = dout SiLU(z[p]);   dD += dy[t] u[p]
        (6)        dC[q] += sum over channels of dy[t] s[t];   c[t] = C[q] dy[t]
        (7)        g[t] = c[t] + a[t+1] g[t+1]           gradient of h[t], from the right
        (8)        q[t] = a[t-1] (c[t-1] + q[t-1])       gradient of r[t], from the left; restarts with r
        (9)        d log a[t] = a[t] (g[t] h[t-1] + r[t+1] (c[t] + q[t]))
       (10)        db[t] = g[t] + q[t];   dB[q] += sum over channels of db[t] dt[t] u[p]
       (11)        du[p] += dt[t] (db[t] . B[q]) + D dy[t]
       (12)        dA += d log a[t] dt[t];   d dt[t] = d log a[t] . A + u[p] (db[t] . B[q])
       (13)        ddelta[q] += d dt[t] sigmoid(x[t]);   dbias likewise

Without a window there is no (2) and no (8), and s = h. The fp32 state h[N, BLOCK_D] stays in registers. The backward
pass starts from the states before every `segment`-th step and walks the segments from the last to the first:

    I.   run (1) and (8) over the segment and keep the state before every UNROLL-th step: scratch that stays in cache
    II.  for each group of UNROLL steps, the last first: run (1) and (8) again and keep every state in registers
    III. walk the group from right to left and take (2) to (13) at each step

How a result gets to its token (`KIND`): STORE (0) where every token is visited once for certain (raster order);
UPDATE (1) where one program alone visits a token, perhaps several times: a table says at which steps to read back
what is already there, so nothing is zeroed first and no atomic is needed; ATOMIC (2), into fp32, where programs meet.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# ---------------------------------------------------------------------------------------------------------------------
# parts of a step


@triton.jit
def _softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|); log1p by a polynomial whose relative error is 4e-7 on [0, 1].

    `tl.log2` becomes 17 multiply-adds, and `lg2.approx` of 1 + e has an absolute error of 2e-7, which at a usual
    dt of 1e-3 is a relative 2e-4; this takes 8 and runs everywhere.
    """
    e = tl.exp2(-tl.abs(x) * 1.4426950408889634)
    p = 0.04349390044808388 - 0.00837115291506052 * e
    p = -0.1068500280380249 + p * e
    p = 0.1768747717142105 + p * e
    p = -0.24474774301052094 + p * e
    p = 0.3327192962169647 + p * e
    p = -0.49997174739837646 + p * e
    p = 0.9999997615814209 + p * e
    return tl.maximum(x, 0.0) + p * e


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * 1.4426950408889634))


@triton.jit
def _code(table_ptr, t, inside):
    """The table's entry at step t: a token's position p, or ~p where this program has been before; 0 past the end."""
    if table_ptr is None:
        code = t
    elif inside is None:
        code = tl.load(table_ptr + t).to(tl.int32)
    else:
        code = tl.load(table_ptr + t, mask=inside, other=0).to(tl.int32)
    return code


@triton.jit
def _position(code, WIDE: tl.constexpr):
    position = tl.where(code < 0, -1 - code, code)
    if WIDE:
        position = position.to(tl.int64)
    return position


@triton.jit
def _put(ptr, value, mask, code, KIND: tl.constexpr):
    """Bring `value` to memory; see KIND at the head of the file."""
    if KIND == 2:
        tl.atomic_add(ptr, value, mask=mask, sem='relaxed')
    else:
        if KIND == 1:  # noqa: SIM102 (a compile-time condition around one at run time)
            # in a branch, where no pipeline can move the load ahead of what an earlier step has written, and behind a
            # barrier, since another thread of the program may have written it
            if code < 0:
                tl.debug_barrier()
                value += tl.load(ptr, mask=mask, other=0.0, volatile=True).to(tl.float32)
        tl.store(ptr, value.to(ptr.dtype.element_ty), mask=mask)


# A state is a tile [BLOCK_N, BLOCK_D], or for N = 1 the vector [BLOCK_D]: as [1, BLOCK_D] it would be laid out twice.


@triton.jit
def _states(BLOCK_N: tl.constexpr):
    if BLOCK_N == 1:
        n = 0 * tl.program_id(0)
    else:
        n = tl.arange(0, BLOCK_N)
    return n


@triton.jit
def _over_states(x, BLOCK_N: tl.constexpr):
    """One number per channel, for every state."""
    if BLOCK_N > 1:
        x = x[None, :]
    return x


@triton.jit
def _over_channels(x, BLOCK_N: tl.constexpr):
    """One number per state, for every channel."""
    if BLOCK_N > 1:
        x = x[:, None]
    return x


@triton.jit
def _in_tile(in_n, in_d, BLOCK_N: tl.constexpr):
    if BLOCK_N > 1:
        mask = in_n[:, None] & in_d[None, :]
    else:
        mask = in_d
    return mask


@triton.jit
def _sum_states(x, BLOCK_N: tl.constexpr):
    if BLOCK_N > 1:
        x = tl.sum(x, 0)
    return x


@triton.jit
def _sum_channels(x, BLOCK_N: tl.constexpr):
    if BLOCK_N > 1:
        total = tl.sum(x, 1)
    else:
        total = tl.sum(x, 0)
    return total


@triton.jit
def _zeros(BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    if BLOCK_N > 1:
        x = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    else:
        x = tl.zeros((BLOCK_D,), tl.float32)
    return x


@triton.jit
def _tile(row, n, d, channels, BLOCK_N: tl.constexpr):
    """Offsets of a tile in a tensor (rows, N, D), of which `row` is N times the index of the row."""
    return _over_channels(row + n, BLOCK_N) * channels + _over_states(d, BLOCK_N)


@triton.jit
def _advance(h, dt, u, a, b, BLOCK_N: tl.constexpr):
    """The state after a step."""
    return tl.exp2(_over_states(dt, BLOCK_N) * a) * h + _over_channels(b, BLOCK_N) * _over_states(dt * u, BLOCK_N)


class Place(NamedTuple):
    """Which part of the problem a program has.

    Blocks of channels are numbered fastest, then directions, chunks, batch: neighbours read the same tokens.
    """

    pid: tl.tensor
    block: tl.tensor
    k: tl.tensor
    part: tl.tensor  # which chunk
    batch: tl.tensor
    d: tl.tensor
    n: tl.tensor
    in_d: tl.tensor
    in_n: tl.tensor
    in_nd: tl.tensor


class Inputs(NamedTuple):
    """Row 0 of this program's batch, direction, channels and states; the distance to the next row; `None` if absent."""

    u: tl.tensor
    delta: tl.tensor
    b: tl.tensor
    c: tl.tensor
    z: tl.tensor
    dy: tl.tensor
    order: tl.tensor
    params: tl.tensor
    stride_u: tl.tensor
    stride_delta: tl.tensor
    stride_b: tl.tensor
    stride_c: tl.tensor
    stride_z: tl.tensor
    stride_dy: tl.tensor
    bias: tl.tensor  # not pointers: the parameters of this program's channels
    a: tl.tensor
    skip: tl.tensor


class Step(NamedTuple):
    """What (1) reads at a step."""

    code: tl.tensor
    param_code: tl.tensor
    u: tl.tensor
    x: tl.tensor
    dt: tl.tensor
    b: tl.tensor


@triton.jit
def _place(channels, directions, chunks, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    k = (pid // blocks) % directions
    part = (pid // (blocks * directions)) % chunks
    batch = (pid // (blocks * directions * chunks)).to(tl.int64)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = _states(BLOCK_N)
    in_d = d < channels
    in_n = n < N
    return Place(pid, pid % blocks, k, part, batch, d, n, in_d, in_n, _in_tile(in_n, in_d, BLOCK_N))


@triton.jit
def _rows(ptr, at, column, stride_b, stride_k):
    """Row 0 of this program's batch and direction."""
    return ptr + at.batch * stride_b + at.k.to(tl.int64) * stride_k + column


@triton.jit
def _table(ptr, at, steps):
    """This direction's row of an order table."""
    return ptr + at.k.to(tl.int64) * steps


@triton.jit
def _per_channel(ptr, at, channels):
    """The parameters of this program's channels, (K, D) in memory, in fp32; zeros where there are none."""
    if ptr is None:
        x = tl.zeros_like(at.d).to(tl.float32)
    else:
        x = tl.load(ptr + at.k * channels + at.d, mask=at.in_d, other=0.0).to(tl.float32)
    return x


@triton.jit
def _decay_rates(a_ptr, at, channels, N: tl.constexpr, BLOCK_N: tl.constexpr, SCALAR_A: tl.constexpr):
    """A * log2(e) of direction k, [N, D] or [1, D]. Stored with D fastest, or N would end up across lanes."""
    if SCALAR_A or BLOCK_N == 1:
        a = _over_states(tl.load(a_ptr + at.k * channels + at.d, mask=at.in_d, other=0.0), BLOCK_N)
    else:
        a = tl.load(a_ptr + (at.k * N + at.n)[:, None] * channels + at.d[None, :], mask=at.in_nd, other=0.0)
    # limits: a state that decays infinitely fast is forgotten whatever the rate; one that grows so has no value
    return tl.where(a == float('-inf'), -1e30, tl.where(a == float('inf'), float('nan'), a))


@triton.jit
def _load_step(x, t, inside, in_d, in_n, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr):
    """What step t reads: both codes, u, delta with its bias, dt, and B."""
    code = _code(x.order, t, inside)
    if x.params is None:
        param_code = code
    else:
        param_code = _code(x.params, t, inside)
    q = _position(param_code, WIDE)
    u = tl.load(x.u + _position(code, WIDE) * x.stride_u, mask=in_d, other=0.0).to(tl.float32)
    raw = tl.load(x.delta + q * x.stride_delta, mask=in_d, other=0.0).to(tl.float32) + x.bias
    b = tl.load(x.b + q * x.stride_b, mask=in_n, other=0.0).to(tl.float32)
    if SOFTPLUS:
        dt = _softplus(raw)
    else:
        dt = tl.where(raw == float('-inf'), float('nan'), raw)
    return Step(code, param_code, u, raw, dt, b)


@triton.jit
def _load_c(x, step, in_n, WIDE: tl.constexpr):
    return tl.load(x.c + _position(step.param_code, WIDE) * x.stride_c, mask=in_n, other=0.0).to(tl.float32)


@triton.jit
def _load_dout(x, t, code, in_d, PER_STEP: tl.constexpr, WIDE: tl.constexpr):
    """The gradient of what step t put out."""
    row = _position(t if PER_STEP else code, WIDE)
    return tl.load(x.dy + row * x.stride_dy, mask=in_d, other=0.0).to(tl.float32)


@triton.jit
def _load_dy(x, t, code, in_d, PER_STEP: tl.constexpr, WIDE: tl.constexpr):
    """(5) The gradient of step t's output before the gate."""
    dy = _load_dout(x, t, code, in_d, PER_STEP, WIDE)
    if x.z is not None:
        z = tl.load(x.z + _position(code, WIDE) * x.stride_z, mask=in_d, other=0.0).to(tl.float32)
        dy *= z * _sigmoid(z)
    return dy


@triton.jit
def _same_run(t, WINDOW: tl.constexpr):
    """Whether steps t and t + 1 share a local window."""
    return (t + 1) % WINDOW != 0


# ---------------------------------------------------------------------------------------------------------------------
# forward


@triton.jit
def _forward_step(
    h, x, at, ahead_ptr, out_ptr, stride_out, t, BLOCK_N: tl.constexpr, SOFTPLUS: tl.constexpr, PER_STEP: tl.constexpr,
    KIND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(1), (3) and (4) at step t, of which `ahead_ptr` has C . a[t] r[t+1]; the state after it."""
    step = _load_step(x, t, None, at.in_d, at.in_n, SOFTPLUS, WIDE)
    c = _load_c(x, step, at.in_n, WIDE)
    h = _advance(h, step.dt, step.u, x.a, step.b, BLOCK_N)
    y = _sum_states(h * _over_channels(c, BLOCK_N), BLOCK_N)
    if x.skip is not None:
        y += x.skip * step.u
    if ahead_ptr is not None:
        y += tl.load(ahead_ptr)
    p = _position(step.code, WIDE)
    if x.z is not None:
        z = tl.load(x.z + p * x.stride_z, mask=at.in_d, other=0.0).to(tl.float32)
        y *= z * _sigmoid(z)
    if PER_STEP:
        p = _position(t, WIDE)
    _put(out_ptr + p * stride_out, y, at.in_d, step.code, KIND)
    return h


@triton.jit
def _local_run(
    x, at, ahead_ptr, start, stop, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """(2) over one run, right to left; keeps C . a[t] r[t+1] of every step at `ahead_ptr`."""
    r = _zeros(BLOCK_N, BLOCK_D)
    for i in range(0, stop - start):
        t = stop - 1 - i
        step = _load_step(x, t, None, at.in_d, at.in_n, SOFTPLUS, WIDE)
        c = _load_c(x, step, at.in_n, WIDE)
        ahead = tl.exp2(_over_states(step.dt, BLOCK_N) * x.a) * r
        tl.store(ahead_ptr + (t - start) * BLOCK_D, _sum_states(ahead * _over_channels(c, BLOCK_N), BLOCK_N))
        r = ahead + _over_channels(step.b, BLOCK_N) * _over_states(step.dt * step.u, BLOCK_N)


@triton.jit
def selective_scan_fwd_kernel(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, order_ptr, param_ptr,
    out_ptr, init_ptr, last_ptr, scratch_ptr,
    steps, chunk, channels, directions,
    stride_u_b, stride_u_l, stride_u_k,
    stride_delta_b, stride_delta_l, stride_delta_k,
    stride_b_b, stride_b_l, stride_b_k,
    stride_c_b, stride_c_l, stride_c_k,
    stride_z_b, stride_z_l,
    stride_out_b, stride_out_l, stride_out_k,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SCALAR_A: tl.constexpr, SOFTPLUS: tl.constexpr,
    PER_STEP: tl.constexpr, KIND: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The outputs of one chunk of steps, from the state before it (`init_ptr`; None: zero)."""
    chunks = tl.cdiv(steps, chunk)
    at = _place(channels, directions, chunks, N, BLOCK_N, BLOCK_D)
    x = Inputs(
        _rows(u_ptr, at, at.d, stride_u_b, stride_u_k), _rows(delta_ptr, at, at.d, stride_delta_b, stride_delta_k),
        _rows(b_ptr, at, at.n, stride_b_b, stride_b_k), _rows(c_ptr, at, at.n, stride_c_b, stride_c_k),
        None if z_ptr is None else _rows(z_ptr, at, at.d, stride_z_b, 0), None,
        None if order_ptr is None else _table(order_ptr, at, steps),
        None if param_ptr is None else _table(param_ptr, at, steps),
        stride_u_l, stride_delta_l, stride_b_l, stride_c_l, stride_z_l, 0,
        _per_channel(bias_ptr, at, channels), _decay_rates(a_ptr, at, channels, N, BLOCK_N, SCALAR_A),
        None if d_ptr is None else _per_channel(d_ptr, at, channels),
    )  # fmt: skip
    out_ptr = _rows(out_ptr, at, at.d, stride_out_b, stride_out_k)
    h = _zeros(BLOCK_N, BLOCK_D)
    if init_ptr is not None:
        row = ((at.batch * directions + at.k) * chunks + at.part) * N
        h = tl.load(init_ptr + _tile(row, at.n, at.d, channels, BLOCK_N), mask=at.in_nd, other=0.0)

    begin = at.part * chunk
    end = tl.minimum(begin + chunk, steps)
    if WINDOW == 0:
        for t in tl.range(begin, end, num_stages=STAGES):
            h = _forward_step(h, x, at, None, out_ptr, stride_out_l, t, BLOCK_N, SOFTPLUS, PER_STEP, KIND, WIDE)
    else:
        ahead_ptr = scratch_ptr + at.pid.to(tl.int64) * (WINDOW * BLOCK_D) + tl.arange(0, BLOCK_D)
        for start in range(begin, end, WINDOW):
            stop = tl.minimum(start + WINDOW, end)
            _local_run(x, at, ahead_ptr, start, stop, BLOCK_N, BLOCK_D, SOFTPLUS, WIDE)
            tl.debug_barrier()
            for t in range(start, stop):
                h = _forward_step(
                    h, x, at, ahead_ptr + (t - start) * BLOCK_D, out_ptr, stride_out_l, t,
                    BLOCK_N, SOFTPLUS, PER_STEP, KIND, WIDE,
                )  # fmt: skip
            tl.debug_barrier()

    if last_ptr is not None:  # noqa: SIM102 (a compile-time condition around one at run time)
        if at.part == chunks - 1:
            row = (at.batch * directions + at.k) * N
            tl.store(last_ptr + _tile(row, at.n, at.d, channels, BLOCK_N), h, mask=at.in_nd)


# ---------------------------------------------------------------------------------------------------------------------
# states alone: checkpoints for the backward pass, and what chunks hand on


@triton.jit
def selective_scan_state_kernel(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, z_ptr, bias_ptr, order_ptr, param_ptr, dy_ptr,
    state_ptr, sum_ptr,
    steps, chunk, segment, channels, directions,
    stride_u_b, stride_u_l, stride_u_k,
    stride_delta_b, stride_delta_l, stride_delta_k,
    stride_b_b, stride_b_l, stride_b_k,
    stride_c_b, stride_c_l, stride_c_k,
    stride_z_b, stride_z_l,
    stride_dy_b, stride_dy_l, stride_dy_k,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SCALAR_A: tl.constexpr, SOFTPLUS: tl.constexpr,
    PER_STEP: tl.constexpr, ADJOINT: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state alone.

    If `sum_ptr` is None: the state before every `segment`-th step, in one go over all steps (`chunk` = steps). Else:
    the state that a chunk starting from zero hands on, and its sum of dt; with ADJOINT, what the chunk's first step
    hands to the step before it, a[t] g[t].
    """
    chunks = tl.cdiv(steps, chunk)
    at = _place(channels, directions, chunks, N, BLOCK_N, BLOCK_D)
    x = Inputs(
        _rows(u_ptr, at, at.d, stride_u_b, stride_u_k), _rows(delta_ptr, at, at.d, stride_delta_b, stride_delta_k),
        _rows(b_ptr, at, at.n, stride_b_b, stride_b_k), _rows(c_ptr, at, at.n, stride_c_b, stride_c_k),
        None if z_ptr is None else _rows(z_ptr, at, at.d, stride_z_b, 0),
        None if dy_ptr is None else _rows(dy_ptr, at, at.d, stride_dy_b, stride_dy_k),
        None if order_ptr is None else _table(order_ptr, at, steps),
        None if param_ptr is None else _table(param_ptr, at, steps),
        stride_u_l, stride_delta_l, stride_b_l, stride_c_l, stride_z_l, stride_dy_l,
        _per_channel(bias_ptr, at, channels), _decay_rates(a_ptr, at, channels, N, BLOCK_N, SCALAR_A), None,
    )  # fmt: skip
    begin = at.part * chunk
    end = tl.minimum(begin + chunk, steps)
    h = _zeros(BLOCK_N, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    state_offset = _tile(0, at.n, at.d, channels, BLOCK_N)
    row_size = (tl.zeros((), tl.int64) + N) * channels
    if ADJOINT:  # (7)
        for i in tl.range(0, end - begin, num_stages=STAGES):
            t = end - 1 - i
            step = _load_step(x, t, None, at.in_d, at.in_n, SOFTPLUS, WIDE)
            c = _load_c(x, step, at.in_n, WIDE)
            dy = _load_dy(x, t, step.code, at.in_d, PER_STEP, WIDE)
            decay = tl.exp2(_over_states(step.dt, BLOCK_N) * x.a)
            h = decay * (h + _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N))
            total += step.dt
    else:  # (1)
        saved = (at.batch * directions + at.k) * tl.cdiv(steps, segment) * row_size
        for t in tl.range(begin, end, num_stages=STAGES):
            if sum_ptr is None:  # noqa: SIM102 (a compile-time condition around one at run time)
                if t % segment == 0:
                    tl.store(state_ptr + saved + state_offset, h, mask=at.in_nd)
                    saved += row_size
            step = _load_step(x, t, None, at.in_d, at.in_n, SOFTPLUS, WIDE)
            h = _advance(h, step.dt, step.u, x.a, step.b, BLOCK_N)
            total += step.dt
    if sum_ptr is not None:
        row = (at.batch * directions + at.k) * chunks + at.part
        tl.store(state_ptr + row * row_size + state_offset, h, mask=at.in_nd)
        tl.store(sum_ptr + row * channels + at.d, total, mask=at.in_d)


@triton.jit
def selective_scan_carry_kernel(
    a_ptr, state_ptr, sum_ptr, first_ptr,
    chunks, channels, directions,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SCALAR_A: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Turn what every chunk hands on by itself into what every chunk receives, in place, starting from `first_ptr`."""
    at = _place(channels, directions, 1, N, BLOCK_N, BLOCK_D)
    row = at.batch * directions + at.k
    a = _decay_rates(a_ptr, at, channels, N, BLOCK_N, SCALAR_A)
    offset = _tile(0, at.n, at.d, channels, BLOCK_N)
    row_size = (tl.zeros((), tl.int64) + N) * channels
    h = _zeros(BLOCK_N, BLOCK_D)
    if first_ptr is not None:
        h = tl.load(first_ptr + row * row_size + offset, mask=at.in_nd, other=0.0)
    for i in range(0, chunks):
        part = row * chunks + (chunks - 1 - i if ADJOINT else i)
        handed_on = tl.load(state_ptr + part * row_size + offset, mask=at.in_nd, other=0.0)
        total = tl.load(sum_ptr + part * channels + at.d, mask=at.in_d, other=0.0)
        tl.store(state_ptr + part * row_size + offset, h, mask=at.in_nd)
        h = tl.exp2(_over_states(total, BLOCK_N) * a) * h + handed_on


# ---------------------------------------------------------------------------------------------------------------------
# backward


class Grads(NamedTuple):
    """Row 0 of this program's gradients, and the distance to the next row."""

    u: tl.tensor
    delta: tl.tensor
    b: tl.tensor
    c: tl.tensor
    z: tl.tensor
    stride_u: tl.tensor
    stride_delta: tl.tensor
    stride_b: tl.tensor
    stride_z: tl.tensor


class Group(NamedTuple):
    """UNROLL steps, from II: states and q before each of them and after the last, then what each step has read."""

    states: tl.tensor
    qs: tl.tensor
    codes: tl.tensor
    param_codes: tl.tensor
    us: tl.tensor
    dts: tl.tensor
    slopes: tl.tensor  # of softplus


class Carry(NamedTuple):
    """What walks from right to left: a[t+1] g[t+1], r[t+1], and the sums of dA, dD and dbias."""

    ag: tl.tensor
    r: tl.tensor
    da: tl.tensor
    dd: tl.tensor
    dbias: tl.tensor


@triton.jit
def _checkpoints(
    x, at, h, scratch_ptr, q_scratch_ptr, begin, filled,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SOFTPLUS: tl.constexpr, PER_STEP: tl.constexpr,
    WINDOW: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """I: the state, and q, before every group of a segment."""
    q = _zeros(BLOCK_N, BLOCK_D)
    tl.store(scratch_ptr, h)
    if WINDOW:
        tl.store(q_scratch_ptr, q)
    for group in range(1, filled):
        for i in range(0, UNROLL):
            t = begin + (group - 1) * UNROLL + i
            step = _load_step(x, t, None, at.in_d, at.in_n, SOFTPLUS, WIDE)
            decay = tl.exp2(_over_states(step.dt, BLOCK_N) * x.a)
            h = decay * h + _over_channels(step.b, BLOCK_N) * _over_states(step.dt * step.u, BLOCK_N)
            if WINDOW:
                c = _load_c(x, step, at.in_n, WIDE)
                dy = _load_dy(x, t, step.code, at.in_d, PER_STEP, WIDE)
                q = decay * (q + _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N))
                q = tl.where(_same_run(t, WINDOW), q, 0.0)
        tl.store(scratch_ptr + group * (BLOCK_N * BLOCK_D), h)
        if WINDOW:
            tl.store(q_scratch_ptr + group * (BLOCK_N * BLOCK_D), q)


@triton.jit
def _inside(at, t, end, N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Masks of channels and states; both empty past the end, where dt = 0 and states pass unchanged."""
    return (tl.arange(0, BLOCK_D) * 0 + t < end) & at.in_d, at.n < tl.where(t < end, N, 0)


@triton.jit
def _recompute(
    x, at, h, q, first, end,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SOFTPLUS: tl.constexpr, PER_STEP: tl.constexpr,
    WINDOW: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """II: the steps from `first` on, states kept."""
    states = (h,)
    qs = (q,)
    codes = ()
    param_codes = ()
    us = ()
    dts = ()
    slopes = ()
    for i in tl.static_range(UNROLL):
        t = first + i
        in_dt, in_nt = _inside(at, t, end, N, BLOCK_D)
        step = _load_step(x, t, t < end, in_dt, in_nt, SOFTPLUS, WIDE)
        dt = tl.where(in_dt, step.dt, 0.0)
        decay = tl.exp2(_over_states(dt, BLOCK_N) * x.a)
        h = decay * h + _over_channels(step.b, BLOCK_N) * _over_states(dt * step.u, BLOCK_N)
        if WINDOW:
            c = _load_c(x, step, in_nt, WIDE)
            dy = _load_dy(x, t, step.code, in_dt, PER_STEP, WIDE)
            q = decay * (q + _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N))
            q = tl.where(_same_run(t, WINDOW), q, 0.0)
            qs = qs + (q,)
        states = states + (h,)
        codes = codes + (step.code,)
        param_codes = param_codes + (step.param_code,)
        us = us + (step.u,)
        dts = dts + (dt,)
        if SOFTPLUS:
            slopes = slopes + (_sigmoid(step.x),)
    return Group(states, qs, codes, param_codes, us, dts, slopes)


@triton.jit
def _adjoint_step(
    x, at, grads, carry, group, first, end, i: tl.constexpr,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SCALAR_A: tl.constexpr, SOFTPLUS: tl.constexpr,
    PER_STEP: tl.constexpr, KIND_U: tl.constexpr, KIND_DELTA: tl.constexpr, KIND_B: tl.constexpr, KIND_Z: tl.constexpr,
    WINDOW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """III: (2) to (13) at step `first + i`, whose gradients go to memory; what it hands to the step before it."""
    t = first + i
    in_dt, in_nt = _inside(at, t, end, N, BLOCK_D)
    code = group.codes[i]
    u = group.us[i]
    dt = group.dts[i]
    before = group.states[i]
    p = _position(code, WIDE)
    q_row = _position(group.param_codes[i], WIDE)
    b = tl.load(x.b + q_row * x.stride_b, mask=in_nt, other=0.0).to(tl.float32)
    c = tl.load(x.c + q_row * x.stride_c, mask=in_nt, other=0.0).to(tl.float32)
    dy = _load_dout(x, t, code, in_dt, PER_STEP, WIDE)
    decay = tl.exp2(_over_states(dt, BLOCK_N) * x.a)
    s = group.states[i + 1]
    r = carry.r
    if WINDOW:  # (3)
        s += decay * r
    if x.z is not None:  # (4), (5)
        z = tl.load(x.z + p * x.stride_z, mask=in_dt, other=0.0).to(tl.float32)
        gate = _sigmoid(z)
        y = _sum_states(s * _over_channels(c, BLOCK_N), BLOCK_N)
        if x.skip is not None:
            y += x.skip * u
        _put(grads.z + p * grads.stride_z, dy * y * gate * (1.0 + z * (1.0 - gate)), in_dt, code, KIND_Z)
        dy *= z * gate
    dc = _sum_channels(s * _over_states(dy, BLOCK_N), BLOCK_N)  # (6)
    direct = _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N)
    g = direct + carry.ag  # (7)
    d_log_a = g * before  # (9)
    db = g  # (10)
    if WINDOW:
        q = group.qs[i]
        d_log_a += r * (direct + q)
        db += q
        r = decay * r + _over_channels(b, BLOCK_N) * _over_states(dt * u, BLOCK_N)  # (2)
        r = tl.where(_same_run(t - 1, WINDOW), r, 0.0)  # the run ends here, seen from the right
    d_log_a *= decay
    if SCALAR_A:  # (12)
        summed = _sum_states(d_log_a, BLOCK_N)
        da = carry.da + _over_states(summed * dt, BLOCK_N)
        d_dt = summed * _sum_states(x.a, BLOCK_N) * 0.6931471805599453
    else:
        da = carry.da + d_log_a * _over_states(dt, BLOCK_N)
        d_dt = _sum_states(d_log_a * x.a, BLOCK_N) * 0.6931471805599453
    from_b = _sum_states(db * _over_channels(b, BLOCK_N), BLOCK_N)
    d_dt += from_b * u
    if SOFTPLUS:  # (13)
        d_dt *= group.slopes[i]
    du = from_b * dt
    if x.skip is not None:
        du += x.skip * dy
    _put(grads.u + p * grads.stride_u, du, in_dt, code, KIND_U)  # (11)
    _put(grads.delta + q_row * grads.stride_delta, d_dt, in_dt, group.param_codes[i], KIND_DELTA)
    db = _sum_channels(db * _over_states(dt * u, BLOCK_N), BLOCK_N)
    _put(grads.b + q_row * grads.stride_b, db, in_nt, group.param_codes[i], KIND_B)
    _put(grads.c + q_row * grads.stride_b, dc, in_nt, group.param_codes[i], KIND_B)
    return Carry(decay * g, r, da, carry.dd + dy * u, carry.dbias + tl.where(in_dt, d_dt, 0.0))


@triton.jit
def selective_scan_bwd_kernel(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, order_ptr, param_ptr, dy_ptr,
    state_ptr, adjoint_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, da_ptr, db_ptr, dc_ptr, dd_ptr, dz_ptr, dbias_ptr,
    steps, segment, segments_per_program, channels, directions,
    stride_u_b, stride_u_l, stride_u_k,
    stride_delta_b, stride_delta_l, stride_delta_k,
    stride_b_b, stride_b_l, stride_b_k,
    stride_c_b, stride_c_l, stride_c_k,
    stride_z_b, stride_z_l,
    stride_dy_b, stride_dy_l, stride_dy_k,
    stride_du_b, stride_du_l, stride_du_k,
    stride_ddelta_b, stride_ddelta_l, stride_ddelta_k,
    stride_db_x, stride_db_b, stride_db_l, stride_db_k,
    stride_dz_b, stride_dz_l, stride_dz_k,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SCALAR_A: tl.constexpr, SOFTPLUS: tl.constexpr,
    PER_STEP: tl.constexpr, KIND_U: tl.constexpr, KIND_DELTA: tl.constexpr, KIND_B: tl.constexpr, KIND_Z: tl.constexpr,
    WINDOW: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All gradients of a run of segments of one channel block, from the last segment to the first."""
    segments = tl.cdiv(steps, segment)
    chunks = tl.cdiv(segments, segments_per_program)
    at = _place(channels, directions, chunks, N, BLOCK_N, BLOCK_D)
    x = Inputs(
        _rows(u_ptr, at, at.d, stride_u_b, stride_u_k), _rows(delta_ptr, at, at.d, stride_delta_b, stride_delta_k),
        _rows(b_ptr, at, at.n, stride_b_b, stride_b_k), _rows(c_ptr, at, at.n, stride_c_b, stride_c_k),
        None if z_ptr is None else _rows(z_ptr, at, at.d, stride_z_b, 0),
        _rows(dy_ptr, at, at.d, stride_dy_b, stride_dy_k),
        None if order_ptr is None else _table(order_ptr, at, steps),
        None if param_ptr is None else _table(param_ptr, at, steps),
        stride_u_l, stride_delta_l, stride_b_l, stride_c_l, stride_z_l, stride_dy_l,
        _per_channel(bias_ptr, at, channels), _decay_rates(a_ptr, at, channels, N, BLOCK_N, SCALAR_A),
        None if d_ptr is None else _per_channel(d_ptr, at, channels),
    )  # fmt: skip
    own_b = at.block.to(tl.int64) * stride_db_x + at.n
    grads = Grads(
        _rows(du_ptr, at, at.d, stride_du_b, stride_du_k),
        _rows(ddelta_ptr, at, at.d, stride_ddelta_b, stride_ddelta_k),
        _rows(db_ptr, at, own_b, stride_db_b, stride_db_k), _rows(dc_ptr, at, own_b, stride_db_b, stride_db_k),
        None if dz_ptr is None else _rows(dz_ptr, at, at.d, stride_dz_b, stride_dz_k),
        stride_du_l, stride_ddelta_l, stride_db_l, stride_dz_l,
    )  # fmt: skip
    row_size = (tl.zeros((), tl.int64) + N) * channels
    offset = _tile(0, at.n, at.d, channels, BLOCK_N)
    state_ptr += (at.batch * directions + at.k) * segments * row_size + offset
    # states before every UNROLL-th step of a segment, for this program alone: small enough to stay in cache
    tile = _over_channels(at.n, BLOCK_N) * BLOCK_D + _over_states(tl.arange(0, BLOCK_D), BLOCK_N)
    groups = tl.cdiv(segment, UNROLL)
    scratch_ptr += at.pid.to(tl.int64) * groups * ((2 if WINDOW else 1) * BLOCK_N * BLOCK_D) + tile
    q_scratch_ptr = scratch_ptr + groups * (BLOCK_N * BLOCK_D)

    ag = _zeros(BLOCK_N, BLOCK_D)
    if adjoint_ptr is not None:
        received = ((at.batch * directions + at.k) * chunks + at.part) * row_size
        ag = tl.load(adjoint_ptr + received + offset, mask=at.in_nd, other=0.0)
    zero = tl.zeros((BLOCK_D,), tl.float32)
    carry = Carry(ag, _zeros(BLOCK_N, BLOCK_D), tl.zeros_like(x.a), zero, zero)
    first_segment = at.part * segments_per_program
    last_segment = tl.minimum(first_segment + segments_per_program, segments) - 1
    for segment_back in range(0, last_segment - first_segment + 1):
        segment_now = last_segment - segment_back
        begin = segment_now * segment
        end = tl.minimum(begin + segment, steps)
        filled = tl.cdiv(end - begin, UNROLL)
        h = tl.load(state_ptr + segment_now * row_size, mask=at.in_nd, other=0.0)
        _checkpoints(
            x, at, h, scratch_ptr, q_scratch_ptr, begin, filled,
            BLOCK_N, BLOCK_D, SOFTPLUS, PER_STEP, WINDOW, UNROLL, WIDE,
        )  # fmt: skip
        tl.debug_barrier()
        for group_back in range(0, filled):
            number = filled - 1 - group_back
            first = begin + number * UNROLL
            h = tl.load(scratch_ptr + number * (BLOCK_N * BLOCK_D))
            q = h
            if WINDOW:
                q = tl.load(q_scratch_ptr + number * (BLOCK_N * BLOCK_D))
            group = _recompute(
                x, at, h, q, first, end, N, BLOCK_N, BLOCK_D, SOFTPLUS, PER_STEP, WINDOW, UNROLL, WIDE
            )  # fmt: skip
            for i in tl.static_range(UNROLL):
                carry = _adjoint_step(
                    x, at, grads, carry, group, first, end, UNROLL - 1 - i, N, BLOCK_N, BLOCK_D, SCALAR_A, SOFTPLUS,
                    PER_STEP, KIND_U, KIND_DELTA, KIND_B, KIND_Z, WINDOW, WIDE,
                )  # fmt: skip
        tl.debug_barrier()

    row = (at.batch * chunks + at.part) * directions + at.k
    if SCALAR_A:
        tl.store(da_ptr + row * channels + at.d, _sum_states(carry.da, BLOCK_N), mask=at.in_d)
    else:
        tl.store(da_ptr + row * row_size + offset, carry.da, mask=at.in_nd)
    if dd_ptr is not None:
        tl.store(dd_ptr + row * channels + at.d, carry.dd, mask=at.in_d)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + row * channels + at.d, carry.dbias, mask=at.in_d)


# ---------------------------------------------------------------------------------------------------------------------
# tables of visits


@triton.jit
def visitor_kernel(order_ptr, visitor_ptr, steps, length, total, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """Who visits every token last, as step + 1, or first, as steps - step; 0: nobody."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    p = tl.load(order_ptr + i, mask=mask, other=0).to(tl.int32)
    k = i // steps
    t = i % steps
    rank = steps - t if FIRST else t + 1
    tl.atomic_max(visitor_ptr + k * length + p, rank, mask=mask, sem='relaxed')


@triton.jit
def code_kernel(order_ptr, visitor_ptr, code_ptr, steps, length, total, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """Mark repeated visits: p at the step that comes to token p first (walking backward unless FIRST), else ~p."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    p = tl.load(order_ptr + i, mask=mask, other=0).to(tl.int32)
    k = i // steps
    t = i % steps
    rank = steps - t if FIRST else t + 1
    best = tl.load(visitor_ptr + k * length + p, mask=mask, other=0)
    tl.store(code_ptr + i, tl.where(rank == best, p, -1 - p), mask=mask)


@triton.jit
def clear_unvisited_kernel(
    visitor_ptr, x_ptr, length, width, stride_x, stride_b, stride_l, stride_k, batch_size, directions,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Zero the rows of a result (X, B, L, K, width) whose token no step of direction k visits."""
    pid = tl.program_id(0)
    tiles = tl.cdiv(length, ROWS)
    rows = (pid % tiles) * ROWS + tl.arange(0, ROWS)
    k = (pid // tiles) % directions
    outer = pid // (tiles * directions)
    batch = (outer % batch_size).to(tl.int64)
    x = (outer // batch_size).to(tl.int64)
    unvisited = (rows < length) & (tl.load(visitor_ptr + k * length + rows, mask=rows < length, other=1) == 0)
    x_ptr += x * stride_x + batch * stride_b + k.to(tl.int64) * stride_k
    for start in range(0, width, BLOCK):
        w = start + tl.arange(0, BLOCK)
        ptr = x_ptr + rows.to(tl.int64)[:, None] * stride_l + w[None, :]
        zero = tl.zeros((ROWS, BLOCK), tl.float32).to(x_ptr.dtype.element_ty)
        tl.store(ptr, zero, mask=unvisited[:, None] & (w < width)[None, :])
