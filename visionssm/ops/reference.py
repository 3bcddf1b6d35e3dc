"""The definition of the selective scan: sequential, obvious, any dtype. Every backend is checked against it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import gates, limited_rates, limited_steps


def selective_scan_ref(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Loop over the steps of `visionssm.ops.selective_scan`, one token of every direction at a time.

    Arguments, shapes and results are those of `selective_scan`, without its checks; differentiable by autograd.
    The arithmetic runs in fp32, or in fp64 if `u` is fp64.
    """
    dtype = u.dtype
    work = torch.float64 if dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (x.to(work) for x in (u, delta, A, B, C))
    batch, length, directions, channels = delta.shape
    if order is None:
        order = torch.arange(length, device=u.device).expand(directions, length)
    order = order.long()
    param_order = order if param_order is None else param_order.long()
    steps = order.shape[1]
    k = torch.arange(directions, device=u.device)

    # zero; it makes results depend on all tensors, also of a scan that visits none
    nothing = sum(x.flatten()[:0].sum() for x in (u, delta, A, B, C, D, z, delta_bias) if x is not None)
    A = limited_rates(A)
    state = u.new_zeros(batch, directions, channels, B.shape[-1]) + nothing
    decays, inputs, states = [], [], []
    for t in range(steps):
        at, params_at = order[:, t], param_order[:, t]
        u_t = u[:, at, k] if u.ndim == 4 else u[:, at]  # [B, K, D]
        dt = delta[:, params_at, k]  # [B, K, D]
        if delta_bias is not None:
            dt = dt + delta_bias.to(work)
        dt = F.softplus(dt) if delta_softplus else limited_steps(dt)
        decay = torch.exp(dt.unsqueeze(-1) * A)  # [B, K, D, N]
        fresh = (dt * u_t).unsqueeze(-1) * B[:, params_at, k].unsqueeze(2)  # [B, K, D, N]
        state = decay * state + fresh
        decays.append(decay)
        inputs.append(fresh)
        states.append(state)
    last_state = state

    if local_window is not None:  # LBMamba: add what the rest of the window says, scanned right to left
        for start in range(0, steps, local_window):
            ahead = torch.zeros_like(state)
            for t in reversed(range(start, min(start + local_window, steps))):
                ahead = decays[t] * ahead
                states[t] = states[t] + ahead
                ahead = ahead + inputs[t]

    y = []
    for t in range(steps):
        y_t = (states[t] * C[:, param_order[:, t], k].unsqueeze(2)).sum(-1)  # [B, K, D]
        if D is not None:
            y_t = y_t + D.to(work) * (u[:, order[:, t], k] if u.ndim == 4 else u[:, order[:, t]])
        if z is not None and per_step:
            y_t = y_t * F.silu(z.to(work)[:, order[:, t]])
        y.append(y_t)

    if per_step:
        out = torch.stack(y, 1) if y else u.new_zeros(batch, 0, directions, channels) + nothing
    else:
        out = u.new_zeros(batch, length, directions, channels) + nothing
        sample = torch.arange(batch, device=u.device).unsqueeze(1)
        for t in range(steps):
            at = (sample, order[:, t].expand(batch, -1), k.expand(batch, -1))
            out = out.index_put(at, y[t], accumulate=True)
        if merge:
            out = out.sum(2)
        if z is not None:
            out = out * F.silu(gates(z.to(work), order, merge))
    out = out.to(dtype)
    return (out, last_state) if return_last_state else out
