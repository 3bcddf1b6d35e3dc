"""`selective_scan_fn` of mamba-ssm on `selective_scan`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .selective_scan import check_dtypes, selective_scan


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
    check_dtypes(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    if u.ndim != 3 or delta.shape != u.shape:
        raise ValueError(f'u has shape {tuple(u.shape)} and delta {tuple(delta.shape)}; both must be (B, D, L)')
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f'A has shape {tuple(A.shape)}; expected ({channels}, N)')
    d_state = A.shape[1]
    # a constant (D, N) parameter differs by channel: every channel is then a group of its own
    counts = [channels if x.ndim == 2 else x.shape[1] if x.ndim == 4 else 1 for x in (B, C)]
    groups = max(counts)
    for name, x, count in (('B', B, counts[0]), ('C', C, counts[1])):
        shapes = {2: (channels, d_state), 3: (batch, d_state, length), 4: (batch, count, d_state, length)}
        if tuple(x.shape) != shapes.get(x.ndim) or not count or groups % count or channels % count:
            allowed = f'({channels}, {d_state}), ({batch}, {d_state}, {length}) or ({batch}, G, {d_state}, {length})'
            raise ValueError(f'{name} has shape {tuple(x.shape)}; allowed are {allowed}, G dividing {channels}')
    for name, x, shape in (('z', z, u.shape), ('D', D, (channels,)), ('delta_bias', delta_bias, (channels,))):
        if x is not None and tuple(x.shape) != tuple(shape):
            raise ValueError(f'{name} has shape {tuple(x.shape)}; expected {tuple(shape)}')
    width = channels // groups

    def weights(x: Tensor) -> Tensor:  # -> [B, L, G, N]
        if x.ndim == 2:
            return x.to(u.dtype).expand(batch, length, channels, d_state)
        x = x.unsqueeze(1) if x.ndim == 3 else x
        return x.permute(0, 3, 1, 2).repeat_interleave(groups // x.shape[1], 2)

    def tokens(x: Tensor) -> Tensor:  # [B, D, L] -> [B, L, G, D / G]
        return x.transpose(1, 2).unflatten(2, (groups, width))

    out, last_state = selective_scan(
        u=tokens(u) if groups > 1 else u.transpose(1, 2),
        delta=tokens(delta),
        A=A.reshape(groups, width, d_state),
        B=weights(B),
        C=weights(C),
        D=None if D is None else D.reshape(groups, width),
        z=z.transpose(1, 2) if z is not None and groups == 1 else None,
        delta_bias=None if delta_bias is None else delta_bias.reshape(groups, width),
        delta_softplus=delta_softplus,
        merge=groups == 1,
        return_last_state=True,
    )
    out = out.reshape(batch, length, channels).transpose(1, 2)
    if z is not None and groups > 1:
        out = (out * F.silu(z.to(last_state.dtype))).to(u.dtype)
    return (out, last_state.reshape(batch, channels, d_state)) if return_last_state else out
