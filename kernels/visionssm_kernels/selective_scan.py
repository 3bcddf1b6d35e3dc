"""Selective scan over channels-last tokens in any visiting order, forward and backward, fused for GPUs.

    p = order[k, t];  q = param_order[k, t];  h[t] = exp(dt[q] A) h[t-1] + dt[q] B[q] u[p];  y[t] = C[q] . h[t] + D u[p]

Tokens are read where they lie and results are written where they belong; only the order of visiting changes, so no
permuted copy of anything of size B * L * K * D exists. One program walks one (batch, direction, channel block) in time
with its fp32 state `h[N, BLOCK_D]` in registers, or one chunk of it (`choose_plan`):

- sequential: one launch. For many programs.
- chunked: a local pass finds every chunk's end state and its sum of dt (the decay over a chunk is exp(A * sum dt)), a
  small kernel carries states across chunks, then all chunks run at once. For few programs and many steps.

The backward pass keeps nothing from the forward pass but its inputs. It saves the state every `segment` steps, then
walks the segments from the last to the first: `unroll` states at a time are recomputed into registers and the adjoint
runs over them. With LBMamba's local window w, inside each run of w steps, with c_t = C_t dy_t,

    r[t] = a[t] r[t+1] + dt B u;  g[t] = c[t] + a[t+1] g[t+1];  q[t] = a[t-1] (c[t-1] + q[t-1])
    s[t] = h[t] + a[t] r[t+1];  y = C . s + D u
    d a[t] = g[t] h[t-1] + r[t+1] (c[t] + q[t]);  d (dt B u)[t] = g[t] + q[t];  d C = dy s

where r and q restart in every run and g does not. The states themselves, which A2Mamba needs, are the output for
C = 1 and D = None: no kernel of their own.

How a result gets to its token (`KIND`): STORE where every token is visited once for certain (raster order); UPDATE
where one program alone visits a token, perhaps several times: a table says at which steps to read back what is already
there, so nothing is zeroed first and no atomic is needed; ATOMIC, into fp32, where several programs meet. Under
`torch.use_deterministic_algorithms(True)` every direction and channel block gets a buffer of its own and there is no
ATOMIC.

Source: arXiv:2312.00752 (scan), arXiv:2401.10166 (directions), arXiv:2506.15976 (local window), arXiv:2405.21060
(scalar decay). Not measured on a GPU yet: the plans' constants come from compiled code and byte counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = math.log2(math.e)
MERGED, PER_DIRECTION, PER_STEP = 0, 1, 2
STORE, UPDATE, ATOMIC = 0, 1, 2
MAX_STATE = 64
MULTIPROCESSORS = 132  # of an H100; used where the device does not say
PROGRAMS_PER_MULTIPROCESSOR = 4  # below this the loads of one step can't be hidden behind other programs
MIN_CHUNK, MAX_CHUNK = 64, 256


class Plan(NamedTuple):
    """How one pass runs: channels per program, steps per chunk (0: sequential), per saved state and per unroll."""

    block_d: int
    chunk: int
    segment: int
    unroll: int
    warps: int


def choose_plan(
    batch: int,
    directions: int,
    channels: int,
    d_state: int,
    steps: int,
    *,
    window: int = 0,
    backward: bool = False,
    sequential: bool = False,
    multiprocessors: int = MULTIPROCESSORS,
) -> Plan:
    """The rule that picks a plan, from sizes alone.

    1. Channels per program: the most of 128, 64, 32, 16 that keep the state in registers (at most 1024 numbers per
       warp forward, 512 backward; two warps if d_state > 32), pad D by at most a third (128: an eighth), and leave
       `PROGRAMS_PER_MULTIPROCESSOR` programs per multiprocessor. If none leaves so many: forward 64, which at 16 bits
       is what a warp needs to load ahead, backward 32; or the fewest above it, or the most below.
    2. Sequential if that gives enough programs or there are fewer than two chunks of `MIN_CHUNK` steps.
    3. Else chunks of 64, 128 or 256 steps: the longest that give enough programs, else 64; rounded up to a multiple of
       the window.

    Args:
        batch: B.
        directions: K.
        channels: D.
        d_state: N.
        steps: T.
        window: Steps per local backward window, 0 for none.
        backward: Plan for the backward pass.
        sequential: Rule chunks out (deterministic algorithms with an order table).
        multiprocessors: Of the device.
    """
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    n = triton.next_power_of_2(d_state)
    warps = 1 if n <= 32 else 2
    numbers = warps * (512 if backward else 1024)
    fitting = [d for d in (128, 64, 32) if n * d <= numbers] or [16]
    padded = {d: triton.cdiv(channels, d) * d / channels for d in fitting}
    blocks = [d for d in fitting if padded[d] <= (9 / 8 if d == 128 else 4 / 3)] or fitting[-1:]
    enough = [d for d in blocks if batch * directions * triton.cdiv(channels, d) >= wanted]
    block_d = enough[0] if enough else min([d for d in blocks if d >= (32 if backward else 64)] or blocks[:1])
    programs = batch * directions * triton.cdiv(channels, block_d)
    chunk = 0
    if not sequential and programs < wanted and steps >= 2 * MIN_CHUNK:
        chunk = MAX_CHUNK
        while chunk > MIN_CHUNK and programs * triton.cdiv(steps, chunk) < wanted:
            chunk //= 2
        chunk = triton.cdiv(chunk, max(window, 1)) * max(window, 1)
    # more would spill on one of the targets of resources.json
    unroll = 1 if n > 2 else 4 if block_d == 128 and not window else 2
    segment = chunk or (8 if n <= 2 else 16)  # scratch of all programs at once: 30 MiB on an H100, within its L2
    if window and not chunk:
        segment = triton.cdiv(segment, window) * window
    return Plan(block_d, chunk, segment, unroll, warps)


# ---------------------------------------------------------------------------------------------------------------------
# device functions


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
def _code(table_ptr, t, inside, k, steps):
    """The table's entry at step t: a token's position p, or ~p where this program has been before; 0 past the end."""
    if table_ptr is None:
        code = t
    elif inside is None:
        code = tl.load(table_ptr + k.to(tl.int64) * steps + t).to(tl.int32)
    else:
        code = tl.load(table_ptr + k.to(tl.int64) * steps + t, mask=inside, other=0).to(tl.int32)
    return code


@triton.jit
def _position(code, WIDE: tl.constexpr):
    position = tl.where(code < 0, -1 - code, code)
    if WIDE:
        position = position.to(tl.int64)
    return position


@triton.jit
def _put(ptr, value, mask, code, KIND: tl.constexpr):
    """Bring `value` to memory; see KIND in the module's docstring."""
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


@triton.jit
def _vector(ptr, like, mask):
    """The parameters at `ptr`, in fp32; zeros where there are none."""
    if ptr is None:
        x = tl.zeros_like(like).to(tl.float32)
    else:
        x = tl.load(ptr, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def _decay_rates(
    a_ptr, k, channels, d, n, in_d, in_n, N: tl.constexpr, BLOCK_N: tl.constexpr, SCALAR_A: tl.constexpr
):  # fmt: skip
    """A * log2(e) of direction k, [N, D] or [1, D]. Stored with D fastest, or N would end up across lanes."""
    if SCALAR_A or BLOCK_N == 1:
        a = _over_states(tl.load(a_ptr + k * channels + d, mask=in_d, other=0.0), BLOCK_N)
    else:
        in_nd = _in_tile(in_n, in_d, BLOCK_N)
        a = tl.load(a_ptr + (k * N + n)[:, None] * channels + d[None, :], mask=in_nd, other=0.0)
    return a


@triton.jit
def _load_step(
    u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, inside, in_d, in_n, k, steps,
    stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What step t reads: both codes, u, delta with its bias, dt, and B."""
    code = _code(order_ptr, t, inside, k, steps)
    if param_ptr is None:
        param_code = code
    else:
        param_code = _code(param_ptr, t, inside, k, steps)
    q = _position(param_code, WIDE)
    u = tl.load(u_ptr + _position(code, WIDE) * stride_u_l, mask=in_d, other=0.0).to(tl.float32)
    x = tl.load(delta_ptr + q * stride_delta_l, mask=in_d, other=0.0).to(tl.float32) + bias
    b = tl.load(b_ptr + q * stride_b_l, mask=in_n, other=0.0).to(tl.float32)
    dt = x
    if SOFTPLUS:
        dt = _softplus(x)
    return code, param_code, u, x, dt, b


# ---------------------------------------------------------------------------------------------------------------------
# kernels. Programs are numbered channel block (fastest), direction, chunk, batch: neighbours read the same tokens.


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
    blocks = tl.cdiv(channels, BLOCK_D)
    chunks = tl.cdiv(steps, chunk)
    pid = tl.program_id(0)
    k = (pid // blocks) % directions
    part = (pid // (blocks * directions)) % chunks
    batch = (pid // (blocks * directions * chunks)).to(tl.int64)
    wide_k = k.to(tl.int64)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = _states(BLOCK_N)
    in_d = d < channels
    in_n = n < N
    in_nd = _in_tile(in_n, in_d, BLOCK_N)

    u_ptr += batch * stride_u_b + wide_k * stride_u_k + d
    delta_ptr += batch * stride_delta_b + wide_k * stride_delta_k + d
    b_ptr += batch * stride_b_b + wide_k * stride_b_k + n
    c_ptr += batch * stride_c_b + wide_k * stride_c_k + n
    out_ptr += batch * stride_out_b + wide_k * stride_out_k + d
    a = _decay_rates(a_ptr, k, channels, d, n, in_d, in_n, N, BLOCK_N, SCALAR_A)
    bias = _vector(bias_ptr + k * channels + d if bias_ptr is not None else None, d, in_d)
    skip = _vector(d_ptr + k * channels + d if d_ptr is not None else None, d, in_d)
    if z_ptr is not None:
        z_ptr += batch * stride_z_b + d
    h = _zeros(BLOCK_N, BLOCK_D)
    if init_ptr is not None:
        row = ((batch * directions + k) * chunks + part) * N
        h = tl.load(init_ptr + _tile(row, n, d, channels, BLOCK_N), mask=in_nd, other=0.0)

    begin = part * chunk
    end = tl.minimum(begin + chunk, steps)
    if WINDOW == 0:
        for t in tl.range(begin, end, num_stages=STAGES):
            code, param_code, u, _, dt, b = _load_step(
                u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, None, in_d, in_n, k, steps,
                stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
            )  # fmt: skip
            c = tl.load(c_ptr + _position(param_code, WIDE) * stride_c_l, mask=in_n, other=0.0).to(tl.float32)
            h = _advance(h, dt, u, a, b, BLOCK_N)
            y = _sum_states(h * _over_channels(c, BLOCK_N), BLOCK_N) + skip * u
            _write_step(out_ptr, z_ptr, y, t, code, in_d, stride_out_l, stride_z_l, PER_STEP, KIND, WIDE)
    else:
        scratch_ptr += pid.to(tl.int64) * (WINDOW * BLOCK_D) + tl.arange(0, BLOCK_D)
        for start in range(begin, end, WINDOW):
            stop = tl.minimum(start + WINDOW, end)
            r = _zeros(BLOCK_N, BLOCK_D)
            for i in range(0, stop - start):  # right to left
                t = stop - 1 - i
                _, param_code, u, _, dt, b = _load_step(
                    u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, None, in_d, in_n, k, steps,
                    stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
                )  # fmt: skip
                c = tl.load(c_ptr + _position(param_code, WIDE) * stride_c_l, mask=in_n, other=0.0).to(tl.float32)
                ahead = tl.exp2(_over_states(dt, BLOCK_N) * a) * r
                tl.store(scratch_ptr + (t - start) * BLOCK_D, _sum_states(ahead * _over_channels(c, BLOCK_N), BLOCK_N))
                r = ahead + _over_channels(b, BLOCK_N) * _over_states(dt * u, BLOCK_N)
            tl.debug_barrier()
            for t in range(start, stop):
                code, param_code, u, _, dt, b = _load_step(
                    u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, None, in_d, in_n, k, steps,
                    stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
                )  # fmt: skip
                c = tl.load(c_ptr + _position(param_code, WIDE) * stride_c_l, mask=in_n, other=0.0).to(tl.float32)
                h = _advance(h, dt, u, a, b, BLOCK_N)
                y = _sum_states(h * _over_channels(c, BLOCK_N), BLOCK_N) + skip * u
                y += tl.load(scratch_ptr + (t - start) * BLOCK_D)
                _write_step(out_ptr, z_ptr, y, t, code, in_d, stride_out_l, stride_z_l, PER_STEP, KIND, WIDE)
            tl.debug_barrier()

    if last_ptr is not None:  # noqa: SIM102 (a compile-time condition around one at run time)
        if part == chunks - 1:
            row = (batch * directions + k) * N
            tl.store(last_ptr + _tile(row, n, d, channels, BLOCK_N), h, mask=in_nd)


@triton.jit
def _write_step(
    out_ptr, z_ptr, y, t, code, in_d, stride_out_l, stride_z_l,
    PER_STEP: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    p = _position(code, WIDE)
    if z_ptr is not None:
        z = tl.load(z_ptr + p * stride_z_l, mask=in_d, other=0.0).to(tl.float32)
        y *= z * _sigmoid(z)
    if PER_STEP:
        p = _position(t, WIDE)
    _put(out_ptr + p * stride_out_l, y, in_d, code, KIND)


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
    blocks = tl.cdiv(channels, BLOCK_D)
    chunks = tl.cdiv(steps, chunk)
    pid = tl.program_id(0)
    k = (pid // blocks) % directions
    part = (pid // (blocks * directions)) % chunks
    batch = (pid // (blocks * directions * chunks)).to(tl.int64)
    wide_k = k.to(tl.int64)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = _states(BLOCK_N)
    in_d = d < channels
    in_n = n < N
    in_nd = _in_tile(in_n, in_d, BLOCK_N)

    u_ptr += batch * stride_u_b + wide_k * stride_u_k + d
    delta_ptr += batch * stride_delta_b + wide_k * stride_delta_k + d
    b_ptr += batch * stride_b_b + wide_k * stride_b_k + n
    a = _decay_rates(a_ptr, k, channels, d, n, in_d, in_n, N, BLOCK_N, SCALAR_A)
    bias = _vector(bias_ptr + k * channels + d if bias_ptr is not None else None, d, in_d)
    if ADJOINT:
        c_ptr += batch * stride_c_b + wide_k * stride_c_k + n
        dy_ptr += batch * stride_dy_b + wide_k * stride_dy_k + d
        if z_ptr is not None:
            z_ptr += batch * stride_z_b + d

    begin = part * chunk
    end = tl.minimum(begin + chunk, steps)
    h = _zeros(BLOCK_N, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    state_offset = _tile(0, n, d, channels, BLOCK_N)
    row_size = (tl.zeros((), tl.int64) + N) * channels
    if ADJOINT:
        for i in tl.range(0, end - begin, num_stages=STAGES):
            t = end - 1 - i
            code, param_code, _, _, dt, _ = _load_step(
                u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, None, in_d, in_n, k, steps,
                stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
            )  # fmt: skip
            c = tl.load(c_ptr + _position(param_code, WIDE) * stride_c_l, mask=in_n, other=0.0).to(tl.float32)
            dy = _load_grad(dy_ptr, z_ptr, t, code, in_d, stride_dy_l, stride_z_l, PER_STEP, WIDE)
            h = tl.exp2(_over_states(dt, BLOCK_N) * a) * (h + _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N))
            total += dt
    else:
        saved = (batch * directions + k) * tl.cdiv(steps, segment) * row_size
        for t in tl.range(begin, end, num_stages=STAGES):
            if sum_ptr is None:  # noqa: SIM102 (a compile-time condition around one at run time)
                if t % segment == 0:
                    tl.store(state_ptr + saved + state_offset, h, mask=in_nd)
                    saved += row_size
            _, _, u, _, dt, b = _load_step(
                u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, None, in_d, in_n, k, steps,
                stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
            )  # fmt: skip
            h = _advance(h, dt, u, a, b, BLOCK_N)
            total += dt
    if sum_ptr is not None:
        row = (batch * directions + k) * chunks + part
        tl.store(state_ptr + row * row_size + state_offset, h, mask=in_nd)
        tl.store(sum_ptr + row * channels + d, total, mask=in_d)


@triton.jit
def _load_grad(
    dy_ptr, z_ptr, t, code, in_d, stride_dy_l, stride_z_l, PER_STEP: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The gradient of step t's output before the gate."""
    if PER_STEP:
        dy = tl.load(dy_ptr + _position(t, WIDE) * stride_dy_l, mask=in_d, other=0.0).to(tl.float32)
    else:
        dy = tl.load(dy_ptr + _position(code, WIDE) * stride_dy_l, mask=in_d, other=0.0).to(tl.float32)
    if z_ptr is not None:
        z = tl.load(z_ptr + _position(code, WIDE) * stride_z_l, mask=in_d, other=0.0).to(tl.float32)
        dy *= z * _sigmoid(z)
    return dy


@triton.jit
def selective_scan_carry_kernel(
    a_ptr, state_ptr, sum_ptr, first_ptr,
    chunks, channels, directions,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SCALAR_A: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Turn what every chunk hands on by itself into what every chunk receives, in place, starting from `first_ptr`."""
    blocks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    k = (pid // blocks) % directions
    row = (pid // blocks).to(tl.int64)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = _states(BLOCK_N)
    in_d = d < channels
    in_n = n < N
    in_nd = _in_tile(in_n, in_d, BLOCK_N)
    a = _decay_rates(a_ptr, k, channels, d, n, in_d, in_n, N, BLOCK_N, SCALAR_A)
    offset = _tile(0, n, d, channels, BLOCK_N)
    row_size = (tl.zeros((), tl.int64) + N) * channels
    h = _zeros(BLOCK_N, BLOCK_D)
    if first_ptr is not None:
        h = tl.load(first_ptr + row * row_size + offset, mask=in_nd, other=0.0)
    for i in range(0, chunks):
        part = row * chunks + (chunks - 1 - i if ADJOINT else i)
        handed_on = tl.load(state_ptr + part * row_size + offset, mask=in_nd, other=0.0)
        total = tl.load(sum_ptr + part * channels + d, mask=in_d, other=0.0)
        tl.store(state_ptr + part * row_size + offset, h, mask=in_nd)
        h = tl.exp2(_over_states(total, BLOCK_N) * a) * h + handed_on


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
    blocks = tl.cdiv(channels, BLOCK_D)
    segments = tl.cdiv(steps, segment)
    chunks = tl.cdiv(segments, segments_per_program)
    pid = tl.program_id(0)
    k = (pid // blocks) % directions
    part = (pid // (blocks * directions)) % chunks
    batch = (pid // (blocks * directions * chunks)).to(tl.int64)
    wide_k = k.to(tl.int64)
    block = (pid % blocks).to(tl.int64)
    d = (pid % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = _states(BLOCK_N)
    in_d = d < channels
    in_n = n < N
    in_nd = _in_tile(in_n, in_d, BLOCK_N)

    u_ptr += batch * stride_u_b + wide_k * stride_u_k + d
    delta_ptr += batch * stride_delta_b + wide_k * stride_delta_k + d
    b_ptr += batch * stride_b_b + wide_k * stride_b_k + n
    c_ptr += batch * stride_c_b + wide_k * stride_c_k + n
    dy_ptr += batch * stride_dy_b + wide_k * stride_dy_k + d
    du_ptr += batch * stride_du_b + wide_k * stride_du_k + d
    ddelta_ptr += batch * stride_ddelta_b + wide_k * stride_ddelta_k + d
    db_ptr += block * stride_db_x + batch * stride_db_b + wide_k * stride_db_k + n
    dc_ptr += block * stride_db_x + batch * stride_db_b + wide_k * stride_db_k + n
    a = _decay_rates(a_ptr, k, channels, d, n, in_d, in_n, N, BLOCK_N, SCALAR_A)
    bias = _vector(bias_ptr + k * channels + d if bias_ptr is not None else None, d, in_d)
    skip = _vector(d_ptr + k * channels + d if d_ptr is not None else None, d, in_d)
    if z_ptr is not None:
        z_ptr += batch * stride_z_b + d
        dz_ptr += batch * stride_dz_b + wide_k * stride_dz_k + d

    row_size = (tl.zeros((), tl.int64) + N) * channels
    offset = _tile(0, n, d, channels, BLOCK_N)
    state_ptr += (batch * directions + k) * segments * row_size + offset
    # states before every UNROLL-th step of a segment, for this program alone: small enough to stay in cache
    tile = _over_channels(n, BLOCK_N) * BLOCK_D + _over_states(tl.arange(0, BLOCK_D), BLOCK_N)
    groups = tl.cdiv(segment, UNROLL)
    scratch_ptr += pid.to(tl.int64) * groups * ((2 if WINDOW else 1) * BLOCK_N * BLOCK_D) + tile
    q_scratch_ptr = scratch_ptr + groups * (BLOCK_N * BLOCK_D)

    ag = _zeros(BLOCK_N, BLOCK_D)  # a[t+1] g[t+1]
    if adjoint_ptr is not None:
        ag = tl.load(
            adjoint_ptr + ((batch * directions + k) * chunks + part) * row_size + offset, mask=in_nd, other=0.0
        )
    r = _zeros(BLOCK_N, BLOCK_D)
    da = tl.zeros_like(a)
    dd = tl.zeros((BLOCK_D,), tl.float32)
    dbias = tl.zeros((BLOCK_D,), tl.float32)

    first_segment = part * segments_per_program
    last_segment = tl.minimum(first_segment + segments_per_program, segments) - 1
    for segment_back in range(0, last_segment - first_segment + 1):
        s = last_segment - segment_back
        begin = s * segment
        end = tl.minimum(begin + segment, steps)
        filled = tl.cdiv(end - begin, UNROLL)
        h = tl.load(state_ptr + s * row_size, mask=in_nd, other=0.0)
        q = _zeros(BLOCK_N, BLOCK_D)
        tl.store(scratch_ptr, h)
        if WINDOW:
            tl.store(q_scratch_ptr, q)
        for group in range(1, filled):
            for i in range(0, UNROLL):
                t = begin + (group - 1) * UNROLL + i
                code, param_code, u, _, dt, b = _load_step(
                    u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, None, in_d, in_n, k, steps,
                    stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
                )  # fmt: skip
                decay = tl.exp2(_over_states(dt, BLOCK_N) * a)
                h = decay * h + _over_channels(b, BLOCK_N) * _over_states(dt * u, BLOCK_N)
                if WINDOW:
                    c = tl.load(c_ptr + _position(param_code, WIDE) * stride_c_l, mask=in_n, other=0.0).to(tl.float32)
                    dy = _load_grad(dy_ptr, z_ptr, t, code, in_d, stride_dy_l, stride_z_l, PER_STEP, WIDE)
                    keep = ((t + 1) % WINDOW != 0).to(tl.float32)
                    q = decay * (q + _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N)) * keep
            tl.store(scratch_ptr + group * (BLOCK_N * BLOCK_D), h)
            if WINDOW:
                tl.store(q_scratch_ptr + group * (BLOCK_N * BLOCK_D), q)
        tl.debug_barrier()

        for group_back in range(0, filled):
            group = filled - 1 - group_back
            h = tl.load(scratch_ptr + group * (BLOCK_N * BLOCK_D))
            hs = (h,)
            if WINDOW:
                q = tl.load(q_scratch_ptr + group * (BLOCK_N * BLOCK_D))
                qs = (q,)
            codes = ()
            param_codes = ()
            us = ()
            slopes = ()
            dts = ()
            for i in tl.static_range(UNROLL):
                # steps past the end have dt = 0 and no gradient: the state and its adjoint pass through them unchanged
                t = begin + group * UNROLL + i
                inside = t < end
                in_dt = (tl.arange(0, BLOCK_D) * 0 + t < end) & in_d
                in_nt = n < tl.where(t < end, N, 0)
                code, param_code, u, x, dt, b = _load_step(
                    u_ptr, delta_ptr, b_ptr, order_ptr, param_ptr, bias, t, inside, in_dt, in_nt, k, steps,
                    stride_u_l, stride_delta_l, stride_b_l, SOFTPLUS, WIDE,
                )  # fmt: skip
                dt = tl.where(in_dt, dt, 0.0)
                decay = tl.exp2(_over_states(dt, BLOCK_N) * a)
                h = decay * h + _over_channels(b, BLOCK_N) * _over_states(dt * u, BLOCK_N)
                if WINDOW:
                    c = tl.load(c_ptr + _position(param_code, WIDE) * stride_c_l, mask=in_nt, other=0.0).to(tl.float32)
                    dy = _load_grad(dy_ptr, z_ptr, t, code, in_dt, stride_dy_l, stride_z_l, PER_STEP, WIDE)
                    keep = ((t + 1) % WINDOW != 0).to(tl.float32)
                    q = decay * (q + _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N)) * keep
                    qs = qs + (q,)
                hs = hs + (h,)
                codes = codes + (code,)
                param_codes = param_codes + (param_code,)
                us = us + (u,)
                dts = dts + (dt,)
                if SOFTPLUS:
                    slopes = slopes + (_sigmoid(x),)

            for i in tl.static_range(UNROLL):
                t = begin + group * UNROLL + UNROLL - 1 - i
                in_dt = (tl.arange(0, BLOCK_D) * 0 + t < end) & in_d
                in_nt = n < tl.where(t < end, N, 0)
                code = codes[UNROLL - 1 - i]
                param_code = param_codes[UNROLL - 1 - i]
                u = us[UNROLL - 1 - i]
                dt = dts[UNROLL - 1 - i]
                row_b = _position(param_code, WIDE)
                b = tl.load(b_ptr + row_b * stride_b_l, mask=in_nt, other=0.0).to(tl.float32)
                c = tl.load(c_ptr + row_b * stride_c_l, mask=in_nt, other=0.0).to(tl.float32)
                dy = _load_grad(dy_ptr, None, t, code, in_dt, stride_dy_l, stride_z_l, PER_STEP, WIDE)
                decay = tl.exp2(_over_states(dt, BLOCK_N) * a)
                state = hs[UNROLL - i]
                if WINDOW:
                    r *= ((t + 1) % WINDOW != 0).to(tl.float32)
                    state += decay * r
                if z_ptr is not None:
                    z = tl.load(z_ptr + _position(code, WIDE) * stride_z_l, mask=in_dt, other=0.0).to(tl.float32)
                    gate = _sigmoid(z)
                    y = _sum_states(state * _over_channels(c, BLOCK_N), BLOCK_N) + skip * u
                    _put(
                        dz_ptr + _position(code, WIDE) * stride_dz_l,
                        dy * y * gate * (1.0 + z * (1.0 - gate)), in_dt, code, KIND_Z,
                    )  # fmt: skip
                    dy *= z * gate
                dc = _sum_channels(state * _over_states(dy, BLOCK_N), BLOCK_N)
                direct = _over_channels(c, BLOCK_N) * _over_states(dy, BLOCK_N)
                g = direct + ag
                d_decay = g * hs[UNROLL - 1 - i]
                d_fresh = g
                if WINDOW:
                    d_decay += r * (direct + qs[UNROLL - 1 - i])
                    d_fresh += qs[UNROLL - 1 - i]
                    r = decay * r + _over_channels(b, BLOCK_N) * _over_states(dt * u, BLOCK_N)
                d_decay *= decay
                ag = decay * g
                if SCALAR_A:
                    summed = _sum_states(d_decay, BLOCK_N)
                    da += _over_states(summed * dt, BLOCK_N)
                    d_dt = summed * _sum_states(a, BLOCK_N) * 0.6931471805599453
                else:
                    da += d_decay * _over_states(dt, BLOCK_N)
                    d_dt = _sum_states(d_decay * a, BLOCK_N) * 0.6931471805599453
                from_b = _sum_states(d_fresh * _over_channels(b, BLOCK_N), BLOCK_N)
                d_dt += from_b * u
                db = _sum_channels(d_fresh * _over_states(dt * u, BLOCK_N), BLOCK_N)
                du = from_b * dt + skip * dy
                dd += dy * u
                if SOFTPLUS:
                    d_dt *= slopes[UNROLL - 1 - i]
                dbias += tl.where(in_dt, d_dt, 0.0)
                _put(du_ptr + _position(code, WIDE) * stride_du_l, du, in_dt, code, KIND_U)
                _put(ddelta_ptr + row_b * stride_ddelta_l, d_dt, in_dt, param_code, KIND_DELTA)
                _put(db_ptr + row_b * stride_db_l, db, in_nt, param_code, KIND_B)
                _put(dc_ptr + row_b * stride_db_l, dc, in_nt, param_code, KIND_B)
        tl.debug_barrier()

    row = (batch * chunks + part) * directions + k
    if SCALAR_A:
        tl.store(da_ptr + row * channels + d, _sum_states(da, BLOCK_N), mask=in_d)
    else:
        tl.store(da_ptr + row * row_size + offset, da, mask=in_nd)
    if dd_ptr is not None:
        tl.store(dd_ptr + row * channels + d, dd, mask=in_d)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + row * channels + d, dbias, mask=in_d)


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


# ---------------------------------------------------------------------------------------------------------------------
# host


def refuse(problem) -> str:
    """Why these kernels can't serve `problem` (`visionssm.ops._dispatch.Problem`); '' if they can."""
    if problem.dtype == torch.float64:
        return 'its state is float32 and the tokens are float64'
    if problem.d_state > MAX_STATE:
        return f'd_state is {problem.d_state}; its kernels keep at most {MAX_STATE} states in registers'
    if problem.device == 'cuda':
        if not torch.cuda.is_available():
            return 'there is no GPU driver'
        if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
            return f'Triton needs compute capability 8.0, this GPU has {torch.cuda.get_device_capability()}'
    return ''


class Target(NamedTuple):
    """Memory for one result: (X, B, L, K, W), X and K of size 1 where all programs share a buffer."""

    buffer: Tensor
    kind: int
    dtype: torch.dtype

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of batch, token and direction; 0 for a direction that is shared."""
        batch, token, direction = self.buffer.stride()[1:4]
        return batch, token, direction if self.buffer.shape[3] > 1 else 0

    @property
    def block_stride(self) -> int:
        """Of X."""
        return self.buffer.stride(0) if self.buffer.shape[0] > 1 else 0

    def result(self, merge: bool = False) -> Tensor:
        """The result, (B, L, K, W) or (B, L, W)."""
        x = self.buffer[0] if self.buffer.shape[0] == 1 else self.buffer.sum(0)
        if merge:
            x = x.squeeze(2) if x.shape[2] == 1 else x.sum(2)
        return x.to(self.dtype)


def _target(
    shape: tuple[int, ...], dtype: torch.dtype, like: Tensor, visitor: Tensor | None, chunked: bool, merge: bool = False
) -> Target:
    """Memory for a result of `shape` (X, B, L, K, W), to be summed over X and, with `merge`, over K.

    `visitor` is None if no program comes to a token twice, else the table of `_visits`. UPDATE in 16 bits rounds at
    every further visit of a token, as adding up the visits outside the kernel in that dtype would.
    """
    blocks, batch, length, directions, width = shape
    meet = blocks > 1 or (merge and directions > 1)
    if (meet and not torch.are_deterministic_algorithms_enabled()) or (visitor is not None and chunked):
        shape = (1, batch, length, 1 if merge else directions, width)
        return Target(like.new_zeros(shape, dtype=torch.float32), ATOMIC, dtype)
    buffer = like.new_empty(shape, dtype=torch.float32 if meet else dtype)
    if visitor is None:
        return Target(buffer, STORE, dtype)
    target = Target(buffer, UPDATE, dtype)
    rows = 16
    clear_unvisited_kernel[(triton.cdiv(length, rows) * directions * batch * blocks,)](
        visitor, buffer, length, width, target.block_stride, *target.strides, batch, directions,
        ROWS=rows, BLOCK=min(128, triton.next_power_of_2(width)),
    )  # fmt: skip
    return target


def _visits(order: Tensor | None, length: int, first: bool) -> tuple[Tensor | None, Tensor | None]:
    """The order with repeated visits marked (see `code_kernel`) and the table of visitors, (K, L)."""
    if order is None:
        return None, None
    directions, steps = order.shape
    visitor = order.new_zeros((directions, length), dtype=torch.int32)
    codes = torch.empty_like(order, dtype=torch.int32)
    total, block = directions * steps, 1024
    grid = (triton.cdiv(total, block),)
    visitor_kernel[grid](order, visitor, steps, length, total, FIRST=first, BLOCK=block)
    code_kernel[grid](order, visitor, codes, steps, length, total, FIRST=first, BLOCK=block)
    return codes, visitor


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else MULTIPROCESSORS


def _unit_stride(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(x: Tensor | None, shared: bool = False) -> tuple[int, int, int]:
    """Of batch, token and direction."""
    if x is None:
        return 0, 0, 0
    return x.stride(0), x.stride(1), 0 if shared or x.ndim == 3 else x.stride(2)


class _Inputs:
    """The inputs as the kernels want them, their sizes and strides."""

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, order, param_order, softplus, mode, window):
        self.u, self.delta, self.B, self.C, self.z = (_unit_stride(x) for x in (u, delta, B, C, z))
        self.D, self.bias = (x if x is None else x.contiguous() for x in (D, delta_bias))
        self.A = (A.to(torch.float32) * LOG2E).transpose(1, 2).contiguous()
        self.order, self.param_order = (x if x is None else x.contiguous() for x in (order, param_order))
        self.batch, self.length, self.directions, self.channels = delta.shape
        self.d_state = B.shape[-1]
        steps_of = order if order is not None else param_order
        self.steps = self.length if steps_of is None else steps_of.shape[1]
        self.window = min(window, self.steps)
        self.mode = mode
        self.strides_in = (*_strides(self.u), *_strides(self.delta), *_strides(self.B), *_strides(self.C))
        self.strides_z = _strides(self.z)[:2]
        self.meta = {
            'N': self.d_state,
            'BLOCK_N': triton.next_power_of_2(self.d_state),
            'SCALAR_A': A.shape[-1] == 1,
            'SOFTPLUS': softplus,
        }

    @property
    def empty(self) -> bool:
        return self.batch == 0 or self.steps == 0 or self.channels == 0 or self.directions == 0

    def plan(self, backward: bool, sequential: bool) -> Plan:
        return choose_plan(
            self.batch, self.directions, self.channels, self.d_state, self.steps, window=self.window, backward=backward,
            sequential=sequential, multiprocessors=_multiprocessors(self.u),
        )  # fmt: skip

    def grid(self, block_d: int, chunks: int) -> tuple[int]:
        return (triton.cdiv(self.channels, block_d) * self.directions * chunks * self.batch,)

    def new(self, *shape: int) -> Tensor:
        return self.u.new_empty(shape, dtype=torch.float32)

    def wide(self, *outputs: Tensor) -> bool:
        """Whether a token's offset within one batch element can pass 32 bits."""
        inputs = [x for x in (self.u, self.delta, self.B, self.C, self.z) if x is not None]
        spans = [x.stride(1) * x.shape[1] + x.shape[-1] for x in inputs]
        spans += [x.stride(-3) * x.shape[-3] + x.shape[-1] for x in outputs]
        return max(spans) >= 2**31

    def chunk_states(self, chunk: int, plan: Plan, first: Tensor | None, dy: Tensor | None, wide: bool) -> Tensor:
        """What every chunk receives, (B, K, chunks, N, D): the state, or with `dy` its adjoint a[t+1] g[t+1]."""
        chunks = triton.cdiv(self.steps, chunk)
        states = self.new(self.batch, self.directions, chunks, self.d_state, self.channels)
        sums = self.new(self.batch, self.directions, chunks, self.channels)
        self.run_states(chunk, chunk, plan, states, sums, dy, wide)
        meta = {k: v for k, v in self.meta.items() if k != 'SOFTPLUS'}
        selective_scan_carry_kernel[self.grid(plan.block_d, 1)](
            self.A, states, sums, first, chunks, self.channels, self.directions,
            **meta, BLOCK_D=plan.block_d, ADJOINT=dy is not None, num_warps=plan.warps,
        )  # fmt: skip
        return states

    def run_states(self, chunk, segment, plan, states, sums, dy, wide) -> None:
        selective_scan_state_kernel[self.grid(plan.block_d, triton.cdiv(self.steps, chunk))](
            self.u, self.delta, self.A, self.B, self.C, self.z, self.bias, self.order, self.param_order, dy,
            states, sums,
            self.steps, chunk, segment, self.channels, self.directions,
            *self.strides_in, *self.strides_z, *_strides(dy),
            **self.meta, BLOCK_D=plan.block_d, PER_STEP=self.mode == PER_STEP, ADJOINT=dy is not None, WIDE=wide,
            STAGES=4, num_warps=plan.warps,
        )  # fmt: skip


def forward(
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
    softplus: bool,
    mode: int,
    window: int,
    return_last_state: bool,
) -> tuple[Tensor, Tensor]:
    """The scan of `visionssm.ops.selective_scan`, heads expanded.

    Args:
        u: (B, L, D) or (B, L, K, D).
        delta: (B, L, K, D), any strides.
        A: (K, D, N) or (K, D, 1).
        B: (B, L, K, N).
        C: (B, L, K, N).
        D: (K, D).
        z: (B, L, D).
        delta_bias: (K, D).
        order: (K, T), int32 or int64; None is raster order.
        param_order: (K, T); None is that of `order`.
        softplus: Whether dt = softplus(delta + delta_bias).
        mode: 0: merged, (B, L, D); 1: per direction, (B, L, K, D); 2: per step, (B, T, K, D).
        window: Steps per local backward window, 0 for none.
        return_last_state: Whether to return the last state.

    Returns:
        The output in the dtype of `u`, and the last state (B, K, D, N), fp32, or an empty tensor.
    """
    x = _Inputs(u, delta, A, B, C, D, z, delta_bias, order, param_order, softplus, mode, window)
    state_shape = (x.batch, x.directions, x.d_state, x.channels) if return_last_state else (0,)
    last = u.new_zeros(state_shape, dtype=torch.float32)
    if x.empty:
        rows = x.steps if mode == PER_STEP else x.length
        out = u.new_zeros((x.batch, rows, x.channels) if mode == MERGED else (x.batch, rows, x.directions, x.channels))
        return out, last.transpose(2, 3).contiguous() if return_last_state else last
    with torch.cuda.device_of(u):
        deterministic = torch.are_deterministic_algorithms_enabled()
        plan = x.plan(backward=False, sequential=deterministic and order is not None)
        table, visitor = x.order, None
        if mode != PER_STEP and not plan.chunk and (mode == PER_DIRECTION or x.directions == 1 or deterministic):
            table, visitor = _visits(x.order, x.length, first=True)
        elif mode != PER_STEP:
            visitor = x.order  # not None: repeated visits are possible, and the target will be atomic
        shape = (1, x.batch, x.steps if mode == PER_STEP else x.length, x.directions, x.channels)
        target = _target(shape, u.dtype, u, visitor, plan.chunk > 0, merge=mode == MERGED)
        wide = x.wide(target.buffer)
        chunks = triton.cdiv(x.steps, plan.chunk) if plan.chunk else 1
        init = x.chunk_states(plan.chunk, plan, None, None, wide) if plan.chunk else None
        grid = x.grid(plan.block_d, chunks)
        scratch = x.new(grid[0] * x.window * plan.block_d) if x.window else None
        selective_scan_fwd_kernel[grid](
            x.u, x.delta, x.A, x.B, x.C, x.D, x.z, x.bias, table, x.param_order,
            target.buffer, init, last if return_last_state else None, scratch,
            x.steps, plan.chunk or x.steps, x.channels, x.directions,
            *x.strides_in, *x.strides_z, *target.strides,
            **x.meta, BLOCK_D=plan.block_d, PER_STEP=mode == PER_STEP, KIND=target.kind, WINDOW=x.window, WIDE=wide,
            STAGES=4, num_warps=plan.warps,
        )  # fmt: skip
        out = target.result(merge=mode == MERGED)
        return out, last.transpose(2, 3).contiguous() if return_last_state else last


def backward(
    grad_out: Tensor,
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
    softplus: bool,
    mode: int,
    window: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of `forward` with respect to its first eight arguments.

    Args:
        grad_out: Gradient of the output.
        grad_state: Gradient of the last state, (B, K, D, N), or None.
        u: As in `forward`, and so are the others.
        delta: As in `forward`.
        A: As in `forward`.
        B: As in `forward`.
        C: As in `forward`.
        D: As in `forward`.
        z: As in `forward`.
        delta_bias: As in `forward`.
        order: As in `forward`.
        param_order: As in `forward`.
        softplus: As in `forward`.
        mode: As in `forward`.
        window: As in `forward`.

    Returns:
        One gradient per input, in its dtype and shape, contiguous; None for an absent one.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    x = _Inputs(*inputs, order, param_order, softplus, mode, window)
    if x.empty:
        return tuple(None if i is None else torch.zeros_like(i, memory_format=torch.contiguous_format) for i in inputs)
    with torch.cuda.device_of(u):
        deterministic = torch.are_deterministic_algorithms_enabled()
        has_table = order is not None or param_order is not None
        plan = x.plan(backward=True, sequential=deterministic and has_table)
        state_plan = x.plan(backward=False, sequential=True)
        dy = _unit_stride(grad_out)
        first = None if grad_state is None else grad_state.to(torch.float32).transpose(2, 3).contiguous()
        blocks = triton.cdiv(x.channels, plan.block_d)
        segments = triton.cdiv(x.steps, plan.segment)
        chunks = segments if plan.chunk else 1

        codes, visitor = x.order, x.order
        if not plan.chunk:
            codes, visitor = _visits(x.order, x.length, first=False)
        param_codes, param_visitor = x.param_order, visitor if param_order is None else x.param_order
        if not plan.chunk and param_order is not None:
            param_codes, param_visitor = _visits(x.param_order, x.length, first=False)

        def target(dtype: torch.dtype, count: int, width: int, visitor: Tensor | None, merge: bool = False) -> Target:
            shape = (count, x.batch, x.length, x.directions, width)
            return _target(shape, dtype, u, visitor, plan.chunk > 0, merge)

        shared_u = u.ndim == 3
        to_u = target(u.dtype, 1, x.channels, visitor, shared_u)
        to_delta = target(delta.dtype, 1, x.channels, param_visitor)
        to_b = target(B.dtype, blocks, x.d_state, param_visitor)
        to_c = target(C.dtype, blocks, x.d_state, param_visitor)
        to_z = None if z is None else target(z.dtype, 1, x.channels, visitor, True)
        rates = A.shape[-1]
        da = x.new(x.batch * chunks, x.directions, rates, x.channels)
        dd = None if D is None else x.new(x.batch * chunks, x.directions, x.channels)
        dbias = None if delta_bias is None else x.new(x.batch * chunks, x.directions, x.channels)
        wide = x.wide(to_u.buffer, to_delta.buffer, to_b.buffer, dy if mode == MERGED else dy[:, :, 0])

        if plan.chunk:
            states = x.chunk_states(plan.chunk, state_plan, None, None, wide)
            adjoints = x.chunk_states(plan.chunk, state_plan, first, dy, wide)
        else:
            states = x.new(x.batch, x.directions, segments, x.d_state, x.channels)
            x.run_states(x.steps, plan.segment, state_plan, states, None, None, wide)
            adjoints = first
        grid = x.grid(plan.block_d, chunks)
        groups = triton.cdiv(plan.segment, plan.unroll)
        scratch = x.new(grid[0] * groups * (2 if x.window else 1) * x.meta['BLOCK_N'] * plan.block_d)
        selective_scan_bwd_kernel[grid](
            x.u, x.delta, x.A, x.B, x.C, x.D, x.z, x.bias, codes, param_codes, dy,
            states, adjoints, scratch,
            to_u.buffer, to_delta.buffer, da, to_b.buffer, to_c.buffer, dd,
            None if to_z is None else to_z.buffer, dbias,
            x.steps, plan.segment, segments // chunks, x.channels, x.directions,
            *x.strides_in, *x.strides_z, *_strides(dy),
            *to_u.strides, *to_delta.strides, to_b.block_stride, *to_b.strides,
            *((0, 0, 0) if to_z is None else to_z.strides),
            **x.meta, BLOCK_D=plan.block_d, PER_STEP=mode == PER_STEP,
            KIND_U=to_u.kind, KIND_DELTA=to_delta.kind, KIND_B=to_b.kind, KIND_Z=STORE if to_z is None else to_z.kind,
            WINDOW=x.window, UNROLL=plan.unroll, WIDE=wide, num_warps=plan.warps, num_stages=1,
        )  # fmt: skip
        return (
            to_u.result(shared_u),
            to_delta.result(),
            da.sum(0).transpose(1, 2).to(A.dtype).contiguous(),
            to_b.result(),
            to_c.result(),
            None if dd is None else dd.sum(0).to(D.dtype),
            None if to_z is None else to_z.result(True),
            None if dbias is None else dbias.sum(0).to(delta_bias.dtype),
        )
