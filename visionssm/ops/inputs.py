"""What a scan gets, as one tuple: the operator's arguments, heads expanded, in the order of its schema."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .dispatch import ScanProblem

MERGED, PER_DIRECTION, PER_STEP = 0, 1, 2  # what a scan returns: (B, L, D), (B, L, K, D), (B, T, K, D)


def check_positions(name: str, table: Tensor | None, length: int) -> None:
    """Reject positions outside [0, length) before a kernel reads there. On a GPU this would wait for the device.

    Raises:
        ValueError: If there are any.
    """
    if table is not None and table.device.type == 'cpu' and table.numel():
        low, high = table.aminmax()
        if low < 0 or high >= length:
            raise ValueError(f'{name} visits tokens {int(low)}..{int(high)}; allowed are 0..{length - 1}')


def projected_steps(dt: Tensor, projection: Tensor) -> Tensor:
    """Time steps of low rank, (B, L, K, R), times (K, D, R): (B, L, K, D), strided."""
    batch, length = dt.shape[0], dt.shape[1]
    # one product for all directions; its (K, B L, D) is handed on as a view
    wide = torch.bmm(dt.permute(2, 0, 1, 3).flatten(1, 2), projection.transpose(1, 2))
    return wide.reshape(wide.shape[0], batch, length, wide.shape[-1]).permute(1, 2, 0, 3)


def limited_rates(A: Tensor) -> Tensor:
    """Decay rates: at -inf the state is forgotten in one step and nothing depends on the rate; at +inf is no limit."""
    return A.nan_to_num(nan=math.nan, posinf=math.nan, neginf=max(-1e30, torch.finfo(A.dtype).min))


def limited_steps(delta: Tensor) -> Tensor:
    """Time steps without softplus: at -inf is no limit."""
    return delta * torch.where(delta.isneginf(), math.nan, 1.0).to(delta.dtype)


def gates(z: Tensor, order: Tensor | None, merged: bool) -> Tensor:
    """Gates before SiLU of (B, L, D) or (B, L, K, D): 0 for what no step puts out, which is 0 whatever `z` is there."""
    z = z if merged else z.unsqueeze(2)
    if order is None:
        return z
    visited = torch.zeros(order.shape[0], z.shape[1], dtype=torch.bool, device=z.device).scatter(1, order.long(), True)
    return torch.where((visited.any(0) if merged else visited.t()).unsqueeze(-1), z, 0.0)


class ScanInputs(NamedTuple):
    """The arguments of `selective_scan` below its checks.

    Attributes:
        u: Tokens, (B, L, D) or (B, L, K, D).
        delta: Time steps before bias and softplus, (B, L, K, D), any strides.
        A: Decay rates, (K, D, N) or (K, D, 1).
        B: Input weights, (B, L, K, N).
        C: Output weights, (B, L, K, N).
        D: Skip weights, (K, D), or None.
        z: Gate before SiLU, (B, L, D), or None.
        delta_bias: (K, D), or None.
        order: Visiting orders, (K, T), int32 or int64; None: 0..L-1.
        param_order: Tokens that delta, B and C are taken from, (K, T); None: those of `order`.
        delta_softplus: Whether dt = softplus(delta + delta_bias).
        mode: `MERGED`, `PER_DIRECTION` or `PER_STEP`.
        local_window: Steps per local backward window, 0 for none.
        return_last_state: Whether the last state is wanted.
        keep_starts: Whether the states before every chunk of `chunk` steps are wanted, for the backward pass.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    order: Tensor | None
    param_order: Tensor | None
    delta_softplus: bool
    mode: int
    local_window: int
    return_last_state: bool
    keep_starts: bool = False

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What a scan has gradients for: u, delta, A, B, C, D, z, delta_bias."""
        return self[:8]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, L, K, D."""
        return (*self.delta.shape[:3], self.u.shape[-1])

    @property
    def steps(self) -> int:
        """T."""
        return self.delta.shape[1] if self.order is None else self.order.shape[1]

    @property
    def work_dtype(self) -> torch.dtype:
        """The dtype of the state and of all arithmetic."""
        return torch.float64 if self.u.dtype == torch.float64 else torch.float32

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        batch, length, directions, channels = self.sizes
        if self.mode == MERGED:
            return batch, length, channels
        return batch, self.steps if self.mode == PER_STEP else length, directions, channels

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the last state; (0,) if it is not wanted."""
        batch, _, directions, channels = self.sizes
        return (batch, directions, channels, self.B.shape[-1]) if self.return_last_state else (0,)

    @property
    def chunk(self) -> int:
        """Steps per chunk of the backward pass: whole windows, and fewer the more states are to be kept of each."""
        chunk = max(16, 256 // max(1, self.B.shape[-1] // 8))
        window = min(self.local_window, max(self.steps, 1))
        return -(-chunk // window) * window if window else chunk

    @property
    def starts_shape(self) -> tuple[int, ...]:
        """Shape of the states before every chunk, (B, K, chunks, N, D); (0,) if they are not wanted."""
        batch, _, directions, channels = self.sizes
        if not self.keep_starts:
            return (0,)
        return batch, directions, -(-self.steps // self.chunk), self.B.shape[-1], channels

    def new_starts(self) -> Tensor:
        """A tensor for the states before every chunk. NaN, as no state before the first step is: nobody kept any."""
        return self.u.new_full(self.starts_shape, math.nan, dtype=torch.float32)

    @property
    def problem(self) -> ScanProblem:
        """What backends accept or refuse it by."""
        return ScanProblem(self.u.device.type, self.u.dtype, self.B.shape[-1], self.steps, self.local_window)

    def with_bounded_window(self) -> ScanInputs:
        """The same with a window no longer than the walk: a longer one is the whole walk."""
        return self._replace(local_window=min(self.local_window, max(self.steps, 1)))

    def with_limits(self) -> ScanInputs:
        """The same with rates and steps at which every backend gives the limit of the scan, or NaN if it has none."""
        return self._replace(
            A=limited_rates(self.A),
            delta=self.delta if self.delta_softplus else limited_steps(self.delta),
            delta_bias=self.delta_bias
            if self.delta_softplus or self.delta_bias is None
            else limited_steps(self.delta_bias),
        )

    def like_inputs(self, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """Gradients in the dtypes of `tensors`."""
        pairs = zip(grads, self.tensors, strict=True)
        return tuple(None if grad is None else grad.to(x.dtype) for grad, x in pairs)
