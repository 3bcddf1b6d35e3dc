"""Selective scan over channels-last tokens in any visiting order, forward and backward, fused for GPUs: the launches.

`device.py` has the equations and the kernels. Tokens are read where they lie and results are written where they belong;
only the order of visiting changes, so no permuted copy of anything of size B * L * K * D exists. A pass is either

- sequential: one launch. For many programs. Or
- chunked: a local pass finds every chunk's end state and its sum of dt (the decay over a chunk is exp(A * sum dt)), a
  small kernel carries states across chunks, then all chunks run at once. For few programs and many steps.

The backward pass keeps nothing from the forward pass but its inputs. The states themselves, which A2Mamba needs, are
the output for C = 1 and D = None: no kernel of their own.

Under `torch.use_deterministic_algorithms(True)` every direction and channel block gets a buffer of its own and no
result is brought to memory by ATOMIC.

Source: arXiv:2312.00752 (scan), arXiv:2401.10166 (directions), arXiv:2506.15976 (local window), arXiv:2405.21060
(scalar decay). Not measured on a GPU yet: the plans' constants come from compiled code and byte counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .device import (
    clear_unvisited_kernel,
    code_kernel,
    selective_scan_bwd_kernel,
    selective_scan_carry_kernel,
    selective_scan_fwd_kernel,
    selective_scan_state_kernel,
    visitor_kernel,
)

LOG2E = math.log2(math.e)
MERGED, PER_DIRECTION, PER_STEP = 0, 1, 2  # modes of output
STORE, UPDATE, ATOMIC = 0, 1, 2  # how a result gets to its token: KIND in device.py
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


def refuse(problem) -> str:
    """Why these kernels can't serve `problem` (`visionssm.ops.dispatch.ScanProblem`); '' if they can."""
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

    def __init__(self, inputs):
        u, delta, A, B, C, D, z, delta_bias, order, param_order, softplus, mode, window, *_ = inputs
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


def forward(inputs) -> tuple[Tensor, Tensor]:
    """The scan of `visionssm.ops.selective_scan`, heads expanded.

    Args:
        inputs: `visionssm.ops.inputs.ScanInputs`.

    Returns:
        The output in the dtype of `u`, and the last state (B, K, D, N), fp32, or an empty tensor.
    """
    u, order, mode, return_last_state = inputs.u, inputs.order, inputs.mode, inputs.return_last_state
    x = _Inputs(inputs)
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


def backward(grads: tuple[Tensor, Tensor | None], inputs) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs.tensors`.

    Args:
        grads: Gradients of the output and of the last state, (B, K, D, N), or None.
        inputs: As in `forward`.

    Returns:
        One gradient per tensor, in its dtype and shape, contiguous; None for an absent one.
    """
    (grad_out, grad_state), (u, delta, A, B, C, D, z, delta_bias) = grads, inputs.tensors
    order, param_order, mode = inputs.order, inputs.param_order, inputs.mode
    x = _Inputs(inputs)
    if x.empty:
        return tuple(
            None if i is None else torch.zeros_like(i, memory_format=torch.contiguous_format) for i in inputs.tensors
        )
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
