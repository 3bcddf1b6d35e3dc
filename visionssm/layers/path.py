"""Scans along paths whose directions share all parameters and tell themselves apart by their moves: PlainMamba's."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from visionssm.scans import ScanOrder, get_scan, scan_order, step_moves

from .functional import Linear, activated_at_once, add_tokens, scan_tokens, silu_once
from .scanning import ScanningModule, ScanSpec, check_local_window
from .ssm import StepProjector, at_least_fp32, decay_rates, init_A_log

torch.fx.wrap('at_least_fp32')
torch.fx.wrap('decay_rates')
torch.fx.wrap('scan_order')
torch.fx.wrap('scan_tokens')


def walk_with_moves(scan: str, height: int, width: int, like: Tensor) -> Tensor:
    """Visiting orders of a grid and the moves to each token, (2, K, T), on the device of `like`."""
    order = scan_order(scan, height, width, like)
    moves = step_moves(order, width, height)
    return torch.stack([order.to(moves.dtype), moves])


class PathScan(StepProjector, ScanningModule):
    """Depthwise convolution, SiLU, and a selective scan along all directions, summed; what mixers put around is theirs.

    The directions share all parameters. `direction_B` (5, N) is added to B by the move that led to the visited token:
    none (the first step, or a jump), right, left, up, down. Only the tokens are permuted: step t takes its step size, B
    and C from token t in raster order. The bias of `dt_proj` counts twice.

    Args:
        d_inner: Channels D.
        dt_rank: Rank R of the step projection.
        d_state: States N per channel.
        d_conv: Side of the convolution, odd.
        scan: Scan order.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.

    Raises:
        ValueError: If `d_conv` is even, or there is no such window.

    Source: arXiv:2403.17695, section 3.2; ChenhongyiYang/PlainMamba@0975a1d.
    """

    def __init__(
        self,
        d_inner: int,
        dt_rank: int,
        d_state: int,
        d_conv: int,
        scan: ScanSpec,
        local_window: int,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if d_conv % 2 == 0:
            raise ValueError(f'd_conv is {d_conv!r}; allowed are odd numbers')
        check_local_window(local_window)
        dd = {'device': device, 'dtype': dtype}
        self.d_state, self.dt_rank, self.local_window, self.bias_count = d_state, dt_rank, local_window, 2
        self.conv = nn.Conv2d(d_inner, d_inner, d_conv, padding=d_conv // 2, groups=d_inner, **dd)
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = Linear(dt_rank, d_inner, **dd)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.ones(d_inner, **dd))
        self.direction_B = nn.Parameter(torch.empty(5, d_state, **dd))
        self.set_scan(get_scan(scan, 4))
        if not self.D.is_meta:  # slow there, and nothing to fill
            init_A_log(self.A_log)
            trunc_normal_(self.direction_B, std=0.02)

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder) -> None:
        """Take another order, of any number of directions."""
        super().set_scan(order)
        self.num_directions = order.directions
        self.permutation, self.zeros = order.permutation, order.zeros

    def convolve(self, x: Tensor) -> Tensor:
        """SiLU of the convolution of (B, H, W, D)."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = activated_at_once(x, self.conv, 'silu')
            if y is not None:
                return y
        return silu_once(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def convolve_and_scan(self, x: Tensor, walk: Tensor, z: Tensor | None = None) -> Tensor:
        """Convolve and scan.

        Args:
            x: Tokens, (B, H, W, D).
            walk: Visiting orders and the moves to each token, (2, K, T).
            z: Gate before SiLU, (B, H, W, D).

        Returns:
            (B, H, W, D).
        """
        _, height, width, _ = x.shape
        K, N = self.num_directions, self.d_state
        order = walk[0]
        x = self.convolve(x).flatten(1, 2)
        if z is not None:
            z = z.flatten(1, 2)
        dt, B, C = self.x_proj(x).split([self.dt_rank, N, N], -1)
        dt = self.project_steps(dt)  # once for all directions
        A, D = decay_rates(self.A_log).expand(K, -1, -1), at_least_fp32(self.D).expand(K, -1)
        step = torch.arange(order.shape[1], dtype=order.dtype, device=order.device)
        if not self.permutation:  # a walk longer than the grid goes through the parameters again
            step = step % (height * width)
            dt, B, C = dt[:, step], B[:, step], C[:, step]
        dt, C = dt.unsqueeze(2).expand(-1, -1, K, -1), C.unsqueeze(2).expand(-1, -1, K, -1)
        B = B.unsqueeze(2) + self.direction_B[walk[1].t()]  # [B, T, K, N]
        if self.permutation:
            y = scan_tokens(
                u=x,
                delta=dt,
                A=A,
                B=B,
                C=C,
                D=D,
                z=z,
                order=order,
                param_order=step.expand(K, -1),
                local_window=self.local_window,
            )
        else:
            if self.zeros:
                x = F.pad(x, [0, 0, 0, 1])
            u = x[:, order.t()]
            y = scan_tokens(u=u, delta=dt, A=A, B=B, C=C, D=D, merge=False, local_window=self.local_window)
            y = add_tokens(x, order, y)
            y = y[:, : height * width] if self.zeros else y
            if z is not None:
                y = y * F.silu(z)
        return y.unflatten(1, (height, width))
