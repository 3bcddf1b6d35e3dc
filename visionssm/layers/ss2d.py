"""The 2-D selective scan block of VMamba, which GroupMamba uses per channel group."""

import math

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from torch import Tensor, nn

from visionssm.scans import ScanOrder, get_scan, scan_order

from .functional import Linear, activated_at_once
from .mlp import NormedGate
from .scanning import ScanningModule, ScanSpec
from .ssm import SelectiveSSM

torch.fx.wrap('scan_order')


class SS2D(ScanningModule):
    """Projection, depthwise 3x3 convolution, selective scan along K directions, norm, projection back.

    Args:
        dim: Channels in and out.
        d_state: States N per channel.
        expand: d_inner / dim.
        dt_rank: Rank R of the step projection; None: ceil(dim / 16).
        gate: Multiply the scan's output by SiLU of a second half of the first projection.
        conv_bias: Whether the convolution has a bias.
        act_layer: Activation after the convolution.
        mixer: 'mamba1' or 'mamba2'.
        scan: Scan order; it decides the number of parameter sets.
        directions: Number of directions asked of `scan`.
        direction: The one direction of `scan` to walk, with one parameter set; None: all.
        local_window: Steps per window of LBMamba's local backward scan; 0: none.
        projection: Layer of both projections, given channels in, channels out and `bias=False`.
        direction_gate: Weigh the channels of each direction's output as its mean says, before the sum.

    Source: arXiv:2401.10166, section 4.2; MzeroMiko/VMamba@2ed52ea (forward types v0, v05_noz and m0_noz);
        arXiv:2403.09338, hunto/LocalMamba@75e5d1f (gates of directions).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        expand: float = 1.0,
        dt_rank: int | None = None,
        gate: bool = False,
        conv_bias: bool = False,
        act_layer: str = 'silu',
        mixer: str = 'mamba1',
        scan: ScanSpec = 'cross',
        directions: int = 4,
        direction: int | None = None,
        local_window: int = 0,
        projection: type[nn.Module] = Linear,
        direction_gate: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        d_inner = int(expand * dim)
        order = get_scan(scan, directions)
        self.gate = gate
        self.in_proj = projection(dim, 2 * d_inner if gate else d_inner, bias=False, **dd)
        self.conv = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner, bias=conv_bias, **dd)
        self.act = get_act_layer(act_layer)()
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.direction = -1 if direction is None else direction
        sets = order.directions if direction is None else 1
        self.ssm = SelectiveSSM(d_inner, d_state, rank, sets, mixer, local_window=local_window, **dd)
        self.gated_directions = sets if direction_gate else 0
        self.direction_gate = NormedGate(d_inner, **dd) if direction_gate else nn.Identity()
        self.norm = nn.LayerNorm(d_inner, **dd)
        self.out_proj = projection(d_inner, dim, bias=False, **dd)
        self.set_scan(order)

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder) -> None:
        """Take another order with as many directions."""
        super().set_scan(order)
        self.zeros = order.zeros

    def scan_along(self, x: Tensor, order: Tensor, index: int) -> Tensor:
        """The results (B, H W, D) of the walks `order`, with parameter set `index`, or all if that is -1.

        Args:
            x: Tokens, (B, H W, D), and a zero token behind them if the order may visit one.
            order: Visiting orders, one per parameter set.
            index: The parameter set.
        """
        y = self.ssm(x, order, index)
        return y[:, :-1] if self.zeros else y

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of (B, H, W, C), activated."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = activated_at_once(x, self.conv, self.act)
            if y is not None:
                return y
        return self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    @torch.jit.ignore
    def projected_norms(self) -> list[tuple[nn.Module, nn.Linear]]:
        """Norms, each with the one linear layer that reads it."""
        return [] if self.gate else [(self.norm, self.out_proj)]

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of (B, H, W, C)."""
        _, height, width, _ = x.shape
        x = self.in_proj(x)
        z = x
        if self.gate:
            x, z = x.chunk(2, -1)
        x = self.convolve(x).flatten(1, 2)
        order = scan_order(self.scan, height, width, x)
        if self.direction >= 0:
            order = order[self.direction : self.direction + 1]
        if self.zeros:
            x = F.pad(x, [0, 0, 0, 1])
        if self.gated_directions > 0:
            y = self.direction_gate(self.scan_along(x, order[:1], 0))
            for k in range(1, self.gated_directions):
                y = y + self.direction_gate(self.scan_along(x, order[k : k + 1], k))
        else:
            y = self.scan_along(x, order, -1)
        y = self.norm(y).to(x.dtype).reshape(-1, height, width, x.shape[2])
        if self.gate:
            y = y * F.silu(z)
        return self.out_proj(y)
