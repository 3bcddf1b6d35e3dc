"""Scans that give their states, which A2Mamba and Spatial-Mamba mix before C reads them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionssm.scans import ScanOrder, scan_order

from .conv import DepthwiseConv
from .functional import scan_projected
from .scanning import ScanningModule
from .ssm import SelectiveSSM, at_least_fp32, decay_rates

torch.fx.wrap('at_least_fp32')
torch.fx.wrap('decay_rates')
torch.fx.wrap('scan_order')
torch.fx.wrap('scan_projected')


class StateSSM(SelectiveSSM):
    """A selective scan of one state per channel that gives the states, not what C reads from them."""

    def forward(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scan.

        Args:
            x: Tokens in pixel order, (B, L, D).
            order: Visiting orders, (K, T).

        Returns:
            States, (B, L, K, D); C, (B, L, K, 1); what the skips of all directions add, (B, L, D).
        """
        dt, B, C, dt_proj = self.project(x)
        states = scan_projected(
            u=x,
            dt=dt,
            dt_proj=dt_proj,
            A=decay_rates(self.A_log),
            B=B,
            C=torch.ones_like(B),
            delta_bias=at_least_fp32(self.dt_proj_bias),
            order=order,
            merge=False,
            local_window=self.local_window,
        )
        return states, C, x * self.D.sum(0)


class StateScan(ScanningModule):
    """Depthwise convolution, SiLU, and a scan of one state per channel; what becomes of the states is for subclasses.

    Args:
        dim: Channels D.
        kernel_size: Side of the convolution, odd.
        dt_rank: Rank R of the step projection.
        scan: Scan order; it decides the number K of parameter sets.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        dt_rank: int,
        scan: ScanOrder,
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv = DepthwiseConv(dim, kernel_size, **dd)
        self.ssm = StateSSM(dim, 1, dt_rank, scan.directions, local_window=local_window, **dd)
        self.set_scan(scan)

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder) -> None:
        """Take another order with as many directions."""
        super().set_scan(order)
        self.zeros = order.zeros

    def states(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolve and scan (B, H, W, D).

        Returns:
            States, (B, H, W, K, D); C, (B, L, K, 1); what the skips of all directions add, (B, L, D).
        """
        height, width = x.shape[1], x.shape[2]
        u = F.silu(self.conv(x)).flatten(1, 2)
        order, tokens = scan_order(self.scan, height, width, u), height * width
        states, C, skip = self.ssm(F.pad(u, [0, 0, 0, 1]) if self.zeros else u, order)
        if self.zeros:
            states, C, skip = states[:, :tokens], C[:, :tokens], skip[:, :tokens]
        return states.unflatten(1, (height, width)), C, skip
