"""Mamba blocks over a token sequence, as Vim and LBVim stack them."""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from visionssm.ops import scan_tokens
from visionssm.scans import ScanOrder, get_scan

from .onednn import Linear, linear
from .scanning import ScanningModule, ScanSpec
from .ssm import at_least_fp32, decay_rates, init_A_log, init_dt_bias

torch.fx.wrap('linear')
torch.fx.wrap('scan_tokens')
torch.fx.wrap('at_least_fp32')
torch.fx.wrap('decay_rates')

# orders that walk rows: the convolution along them needs no permuted copy; True marks a direction that walks backwards
_ALONG_ROWS = {'raster': [False], 'reversed': [True], 'bidirectional': [False, True]}


class StreamNorm(nn.RMSNorm):
    """RMSNorm of a residual stream that is kept in fp32; the result has the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm of a residual stream that is kept in fp32; the result has the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


class MambaDirection(nn.Module):
    """Parameters of one scan direction: causal convolution, x_proj, dt_proj, `A_log` (D, N) and `D` (D,).

    Args:
        d_inner: Channels D.
        d_state: States N.
        d_conv: Width of the convolution.
        dt_rank: Rank R of the step projection.
    """

    def __init__(self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, **dd)
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = Linear(dt_rank, d_inner, **dd)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.ones(d_inner, **dd))
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        init_dt_bias(self.dt_proj.bias)
        init_A_log(self.A_log)

    def forward(self, x: Tensor, backwards: bool) -> Tensor:
        """Convolve (B, L, D) along L, looking at earlier tokens, or at later ones if `backwards`; then SiLU."""
        weight = self.conv1d.weight.flip(-1) if backwards else self.conv1d.weight
        length, pad = x.shape[1], weight.shape[-1] - 1
        # a 2-D convolution of height 1 takes the channels-last tokens as they are; a 1-D one would transpose them
        x = x.transpose(1, 2).unsqueeze(2)
        x = F.conv2d(x, weight.unsqueeze(2), self.conv1d.bias, padding=[0, pad], groups=weight.shape[0])
        x = x.squeeze(2).transpose(1, 2)
        return F.silu(x[:, pad:] if backwards else x[:, :length])


class MambaMixer(ScanningModule):
    """Gated mixer: projection, then per direction convolution and selective scan, averaged; projection back.

    The convolution follows the visiting order, so each direction sees an input of its own.

    Args:
        dim: Channels in and out.
        d_state: States N per channel.
        d_conv: Width of the convolution.
        expand: d_inner / dim.
        dt_rank: Rank R of the step projection; None: ceil(dim / 16).
        scan: Scan order; it decides the number of directions.
        directions: Number of directions asked of `scan`.
        reverse: Walk every direction backwards.

    Source: arXiv:2401.09417, algorithm 1; hustvl/Vim@dd0358a (bimamba v2 with if_divide_out).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        dt_rank: int | None = None,
        scan: ScanSpec = 'bidirectional',
        directions: int = 2,
        reverse: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        d_inner = int(expand * dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        order = get_scan(scan, directions)
        self.d_state, self.dt_rank = d_state, rank
        self.reverse = reverse
        self.num_directions = order.directions
        self.in_proj = Linear(dim, 2 * d_inner, bias=False, **dd)
        self.directions = nn.ModuleList(
            MambaDirection(d_inner, d_state, d_conv, rank, **dd) for _ in range(order.directions)
        )
        self.out_proj = Linear(d_inner, dim, bias=False, **dd)
        self.set_scan(order)

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder) -> None:
        """Take another order of as many directions."""
        self.along_rows = order.name in _ALONG_ROWS
        walks = _ALONG_ROWS.get(order.name, [False] * order.directions)
        self.backwards = [backwards != (self.reverse and self.along_rows) for backwards in walks]

    def forward(self, x: Tensor, order: Tensor, local_window: int = 0) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, (B, L, C).
            order: Visiting orders, (K, T); the mixer's own scan, with whatever tokens the model added.
            local_window: Steps per window of LBMamba's local backward scan; 0: none.
        """
        if self.reverse:
            order = order.flip(1)
        x, z = self.in_proj(x).chunk(2, -1)
        if self.along_rows:
            walked = x.contiguous().unsqueeze(1)  # once, or every convolution would
        else:
            walked = x[:, order.long()]  # (B, K, T, D), as visited
        outputs = []
        for k, direction in enumerate(self.directions):
            # one scan each: all at once would first have to put what every direction made side by side
            u = direction(walked[:, 0 if self.along_rows else k], self.backwards[k])
            dt, B, C = direction.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
            delta = linear(dt, direction.dt_proj.weight).unsqueeze(2)
            A, D = decay_rates(direction.A_log).unsqueeze(0), at_least_fp32(direction.D).unsqueeze(0)
            bias = at_least_fp32(direction.dt_proj.bias).unsqueeze(0)
            B, C = B.unsqueeze(2), C.unsqueeze(2)
            if self.along_rows:
                way = order[k : k + 1]
                outputs.append(scan_tokens(u, delta, A, B, C, D, z, bias, True, way, None, True, False, local_window))
            else:  # tokens are in visiting order already; they go back to where they came from
                steps = scan_tokens(u, delta, A, B, C, D, None, bias, True, None, None, False, False, local_window)
                outputs.append(torch.zeros_like(z).index_add(1, order[k].long(), steps.squeeze(2)))
        y = outputs[0]
        for output in outputs[1:]:
            y = y + output
        if not self.along_rows:
            y = y * F.silu(z)
        if self.num_directions > 1:
            y = y.div_(self.num_directions)  # in place: a map of fresh memory costs more than the division
        return self.out_proj(y)


class MambaBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), on a stream x that stays fp32.

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
        mixer_args: Arguments of `MambaMixer`.
        norm_layer: `StreamNorm` or `StreamLayerNorm`.
    """

    def __init__(
        self,
        dim: int,
        drop_path: float,
        mixer_args: dict,
        norm_layer: type[nn.Module] = StreamNorm,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = norm_layer(dim, eps=1e-5, **dd)
        self.mixer = MambaMixer(dim, **mixer_args, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def step(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The stream (B, L, C) after the block, and what the mixer says in it."""
        y = self.mixer(self.norm(x), order)
        return x + self.drop_path(y), y

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """Add what the mixer says to (B, L, C)."""
        return self.step(x, order)[0]
