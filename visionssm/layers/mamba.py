"""Mamba blocks over a token sequence, as Vim and LBVim stack them."""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath, register_notrace_function
from torch import Tensor, nn

from visionssm.ops.export import wants_plain
from visionssm.scans import ScanOrder, get_scan

from .functional import Linear, add_tokens, causal_silu_at_once, causal_takes_strides, scan_projected, silu_once
from .mlp import NormedGate
from .scanning import ScanningModule, ScanSpec, check_local_window
from .ssm import StepProjector, at_least_fp32, decay_rates, init_A_log, init_dt_bias

torch.fx.wrap('scan_projected')
torch.fx.wrap('at_least_fp32')
torch.fx.wrap('decay_rates')

# orders that walk rows: the convolution along them needs no permuted copy; True marks a direction that walks backwards
_ALONG_ROWS = {'raster': [False], 'reversed': [True], 'bidirectional': [False, True]}


def _row_walks(order: ScanOrder) -> list[bool | None]:
    """For each direction whether it walks rows backwards; None if it does not walk rows."""
    if order.parts:
        walks = [walk for part in order.parts for walk in _row_walks(part)]
    else:
        walks = _ALONG_ROWS.get(order.name, [None] * order.directions)
    return [None if walk is None else walk != order.backwards for walk in walks]


@torch.fx.wrap
@register_notrace_function
def window_by_length(steps: int) -> int:
    """LBVim's window for a walk of `steps`: 4 up to 128, 8 up to 256, 16 beyond."""
    # by arithmetic: with a branch, compiled and exported graphs would be tied to one of the three ranges
    level = (steps - 1) // 128
    if not torch.jit.is_scripting() and isinstance(level, torch.SymInt):
        level = torch.sym_min(level, 2)
    else:  # dynamo understands `min`; before torch 2.12 it does not take sym_min of plain numbers
        level = min(level, 2)
    return 4 * (1 + level + level // 2)


class StreamNorm(nn.RMSNorm):
    """RMSNorm of a residual stream that is kept in fp32; the result has the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        weight = self.weight.to(x.dtype)
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if wants_plain():  # the tracing ONNX exporter does not know the operator
                x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight
                return x.to(self.weight.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps).to(self.weight.dtype)


class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm of a residual stream that is kept in fp32; the result has the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


STREAM_NORMS = {'rmsnorm': StreamNorm, 'layernorm': StreamLayerNorm}


class CausalConv1d(nn.Conv1d):
    """Depthwise convolution of (B, D, L) along L that looks at earlier tokens, or at later ones if it goes backwards.

    Args:
        dim: Channels D.
        width: Width of the kernel.
    """

    def __init__(self, dim: int, width: int, device=None, dtype=None) -> None:
        super().__init__(dim, dim, width, padding=width - 1, groups=dim, device=device, dtype=dtype)
        self.backwards = False

    def forward(self, input: Tensor) -> Tensor:
        """Convolve; (B, D, L) again."""
        weight = self.weight.flip(-1) if self.backwards else self.weight
        length, pad = input.shape[2], weight.shape[-1] - 1
        # a 2-D convolution of height 1 takes channels-last tokens as they are; a 1-D one would transpose them
        x = F.conv2d(input.unsqueeze(2), weight.unsqueeze(2), self.bias, padding=[0, pad], groups=weight.shape[0])
        x = x.squeeze(2)
        return x[:, :, pad:] if self.backwards else x[:, :, :length]


class MambaDirection(StepProjector):
    """One scan direction: causal convolution, x_proj, dt_proj, `A_log` (D, N), `D` (D,), and the scan with them.

    Args:
        d_inner: Channels D.
        d_state: States N.
        d_conv: Width of the convolution.
        dt_rank: Rank R of the step projection.
    """

    def __init__(self, d_inner: int, d_state: int, d_conv: int, dt_rank: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.d_state, self.dt_rank, self.bias_count = d_state, dt_rank, 1
        self.conv1d = CausalConv1d(d_inner, d_conv, **dd)
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = Linear(dt_rank, d_inner, **dd)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.ones(d_inner, **dd))
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        init_dt_bias(self.dt_proj.bias)
        init_A_log(self.A_log)

    def convolve(self, x: Tensor) -> Tensor:
        """SiLU of the convolution of tokens (B, L, D) in the order of the walk."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if type(self.conv1d) is CausalConv1d:
                y = causal_silu_at_once(x, self.conv1d, self.conv1d.backwards, CausalConv1d)
                if y is not None:
                    return y
        return silu_once(self.conv1d(x.transpose(1, 2)).transpose(1, 2))

    def forward(self, x: Tensor, z: Tensor | None, order: Tensor, along_rows: bool, local_window: int) -> Tensor:
        """Convolve and scan.

        Args:
            x: Tokens, (B, L, D), as they lie.
            z: Gate before SiLU, (B, L, D), applied if `along_rows`; None: no gate.
            order: Visiting order, (1, T).
            along_rows: Whether the convolution goes along tokens as they lie.
            local_window: Steps per window of LBMamba's local backward scan; 0: none.

        Returns:
            (B, L, D).
        """
        walked = x if along_rows else x[:, order[0].long()]
        u = self.convolve(walked)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt, dt_proj, bias = self.steps_to_project(dt)
        dt, B, C = dt.unsqueeze(2), B.unsqueeze(2), C.unsqueeze(2)
        A, D = decay_rates(self.A_log).unsqueeze(0), at_least_fp32(self.D).unsqueeze(0)
        if along_rows:
            return scan_projected(
                u=u,
                dt=dt,
                dt_proj=dt_proj,
                A=A,
                B=B,
                C=C,
                D=D,
                z=z,
                delta_bias=bias,
                order=order,
                local_window=local_window,
            )
        # tokens are in visiting order already; they go back to where they came from
        steps = scan_projected(
            u=u, dt=dt, dt_proj=dt_proj, A=A, B=B, C=C, D=D, delta_bias=bias, merge=False, local_window=local_window
        )
        return add_tokens(x, order, steps)


class MambaMixer(ScanningModule):
    """Gated mixer: projection, then per direction convolution and selective scan; projection of their average back.

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
        local_window: Steps per window of LBMamba's local backward scan; 0: none; None: by the length of the walk.
        average: Whether directions are averaged; else they are added up.
        direction_gate: Weigh the channels of each direction's result as its mean says.

    Raises:
        ValueError: If there is no such window.

    Source: arXiv:2401.09417, algorithm 1; hustvl/Vim@dd0358a (bimamba v2 with if_divide_out); arXiv:2403.09338,
        hunto/LocalMamba@75e5d1f (gates of directions).
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
        local_window: int | None = 0,
        average: bool = True,
        direction_gate: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        d_inner = int(expand * dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        order = get_scan(scan, directions)
        check_local_window(local_window, by_length=True)
        self.reverse, self.local_window = reverse, local_window
        self.divisor = order.directions if average else 1
        self.in_proj = Linear(dim, 2 * d_inner, bias=False, **dd)
        self.directions = nn.ModuleList(
            MambaDirection(d_inner, d_state, d_conv, rank, **dd) for _ in range(order.directions)
        )
        self.gated_directions = direction_gate
        self.direction_gate = NormedGate(d_inner, **dd) if direction_gate else nn.Identity()
        self.out_proj = Linear(d_inner, dim, bias=False, **dd)
        self.set_scan(order)

    @torch.jit.ignore
    def set_scan(self, order: ScanOrder) -> None:
        """Take another order with as many directions."""
        super().set_scan(order)
        self.zeros = order.zeros
        walks = _row_walks(order)
        self.row_walks = [backwards is not None for backwards in walks]
        self.along_rows, self.some_along_rows = all(self.row_walks), any(self.row_walks)
        for direction, backwards in zip(self.directions, walks, strict=True):
            direction.conv1d.backwards = backwards is not None and backwards != self.reverse

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """Mix tokens.

        Args:
            x: Tokens, (B, L, C).
            order: Visiting orders, (K, T); the mixer's own scan, with whatever tokens the model added.
        """
        if self.reverse:
            order = order.flip(1)
        local_window = window_by_length(order.shape[1]) if self.local_window is None else self.local_window
        length = x.shape[1]
        x = self.in_proj(x)
        if self.zeros:
            x = F.pad(x, [0, 0, 0, 1])
        x, z = x.chunk(2, -1)
        if self.some_along_rows and not causal_takes_strides(x):
            x = x.contiguous()  # once, or every convolution would
        inside = z if self.along_rows else None  # the gate, where all scans can apply it
        outputs = [  # one scan each: a single one would first have to put the results of all directions side by side
            direction(x, inside, order[k : k + 1], self.row_walks[k], local_window)
            for k, direction in enumerate(self.directions)
        ]
        if self.gated_directions:
            z = F.silu(z)
            outputs = [self._weigh(y if self.along_rows else y * z, length) for y in outputs]
        y = outputs[0]
        for output in outputs[1:]:
            y = y.add_(output)  # in place, here and below: allocating another map costs more than the sum
        if not (self.along_rows or self.gated_directions):
            y = y * F.silu(z)
        if self.divisor > 1:
            y = y.div_(self.divisor)
        return self.out_proj(y[:, :length] if self.zeros else y)

    def _weigh(self, y: Tensor, length: int) -> Tensor:
        """The result of a direction, with weights for its channels; the zero token has no say."""
        return self.direction_gate(y[:, :length] if self.zeros else y)


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

    @torch.jit.ignore
    def projected_norms(self) -> list[tuple[nn.Module, nn.Linear]]:
        """Norms, each with the one linear layer that reads it."""
        return [(self.norm, self.mixer.in_proj)]

    def step(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The stream (B, L, C) after the block, and the mixer's output."""
        y = self.mixer(self.norm(x), order)
        return x + self.drop_path(y), y

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """Add the mixer's output to (B, L, C)."""
        return self.step(x, order)[0]
