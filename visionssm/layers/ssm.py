"""The parameters of a selective scan along several directions, and how tokens become its inputs."""

import contextlib
import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from visionssm.ops.transforms import is_unwatched

from .functional import Linear, is_hooked, linear, scan_projected
from .scanning import check_local_window

torch.fx.wrap('linear')
torch.fx.wrap('scan_projected')


@torch.fx.wrap
@register_notrace_function
def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is if it is fp64."""
    # quantised weights are fp32 to torch, and in inference mode can't be asked for it
    return x if x.dtype == torch.float32 or x.dtype == torch.float64 else x.float()


@torch.fx.wrap
@register_notrace_function
def decay_rates(A_log: Tensor) -> Tensor:
    """The negative rates A = -exp(A_log) in fp32 (fp64 for fp64): bf16 would round decays that multiply up."""
    return -torch.exp(at_least_fp32(A_log))


@torch.fx.wrap
@register_notrace_function
def linear_without_autocast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer in the dtype of `weight`, whatever autocast says."""
    if not torch.jit.is_scripting() and x.device.type != 'meta':  # no autocast there
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return linear(x.to(weight.dtype), weight, bias)
        return linear(x.to(weight.dtype), weight, bias)
    return F.linear(x.to(weight.dtype), weight, bias)


def is_called(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` has to be called: it is no plain `nn.Linear`, or somebody watches its calls.

    If not, a program that is being traced holds the product of its weights.
    """
    return isinstance(x, Tensor) and (type(layer) is not Linear or is_hooked(layer))


def call_without_autocast(layer: nn.Module, x: Tensor, least: bool = False) -> Tensor:
    """A linear layer, or what an adapter or quantiser has put in its place, in the dtype of its weights.

    Args:
        layer: Called with its hooks.
        x: (..., C).
        least: Compute in fp32 if the weights are in half precision.
    """
    weights = getattr(layer, 'weight', None), *layer.parameters()  # adapters have those of the layers in them
    dtype = next((x.dtype for x in weights if isinstance(x, Tensor) and x.is_floating_point()), torch.float32)
    with torch.autocast(x.device.type, enabled=False) if x.device.type != 'meta' else contextlib.nullcontext():
        if not least or dtype.itemsize > 2:
            return layer(x.to(dtype))
        wide = {name: at_least_fp32(p) for name, p in layer.named_parameters() if p.dtype == dtype}
        return torch.func.functional_call(layer, wide, x.float())


class StepProjector(nn.Module):
    """A module whose `dt_proj`, a linear layer (R to D), gives the steps of a scan.

    Attributes:
        bias_count: How often its bias is added.
    """

    def project_steps(self, x: Tensor) -> Tensor:
        """The steps before softplus, (..., R) to (..., D), in fp32 or fp64.

        Half precision would round the bias, and steps of 0.001 would come out a few percent longer or shorter.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if is_called(self.dt_proj, x):
                steps = call_without_autocast(self.dt_proj, x, least=True)
                if self.bias_count == 1:
                    return steps
                bias = getattr(self.dt_proj, 'bias', None)
                bias = bias() if callable(bias) else bias  # as quantised layers have it
                if not isinstance(bias, Tensor) or bias.device != x.device:  # wrapped, or offloaded but while it runs
                    bias = call_without_autocast(self.dt_proj, x.new_zeros(1, x.shape[-1]), least=True)
                return steps + (self.bias_count - 1) * at_least_fp32(bias)
        bias = at_least_fp32(self.dt_proj.bias)
        if self.bias_count != 1:
            bias = bias * self.bias_count
        return linear_without_autocast(x, at_least_fp32(self.dt_proj.weight), bias)

    def steps_to_project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the steps of a scan are made of, (..., R) or (..., D), by `scan_projected`, at inference in fp32.

        Returns:
            `x`, the weight (1, D, R) and the bias (1, D); elsewhere what `project_steps` gives, None and None.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if self._is_projected_by_the_scan(x):
                bias = self.dt_proj.bias if self.bias_count == 1 else self.dt_proj.bias * self.bias_count
                return x, self.dt_proj.weight.unsqueeze(0), bias.unsqueeze(0)
        return self.project_steps(x), None, None

    @torch.jit.ignore
    def _is_projected_by_the_scan(self, x: Tensor) -> bool:
        if type(x) is not Tensor or not is_unwatched(x, *self.dt_proj.parameters()) or is_called(self.dt_proj, x):
            return False
        return x.dtype == self.dt_proj.weight.dtype == torch.float32


def init_dt_bias(bias: Tensor, dt_min: float = 1e-3, dt_max: float = 0.1, dt_init_floor: float = 1e-4) -> None:
    """Fill `bias` so that softplus(bias) is log-uniform in [dt_min, dt_max], at least `dt_init_floor`.

    Source: arXiv:2312.00752, section 3.6.
    """
    with torch.no_grad():
        low, high = math.log(dt_min), math.log(dt_max)
        dt = torch.rand(bias.shape, device=bias.device) * (high - low) + low
        dt = dt.exp().clamp(min=dt_init_floor)
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def init_A_log(A_log: Tensor) -> None:
    """Fill `A_log` (..., N) with log(1..N) in every row: S4D-real."""
    with torch.no_grad():
        A_log.copy_(torch.arange(1, A_log.shape[-1] + 1, device=A_log.device, dtype=torch.float32).log())


def split_projection(projected: Tensor, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split what x_proj gives, (..., R + 2 N), into dt, B and C."""
    dt, B, C = projected.split([projected.shape[-1] - 2 * d_state, d_state, d_state], -1)
    return dt, B, C


class DirectionProjections(nn.Module):
    """`x_proj` and `dt_proj` of one direction, as linear layers of their own.

    Args:
        x_proj: Weight, (R + 2 N, D).
        dt_proj: Weight, (D, R); None: there is no such projection.
    """

    def __init__(self, x_proj: Tensor, dt_proj: Tensor | None) -> None:
        super().__init__()
        self.x_proj = _linear_of(x_proj)
        self.dt_proj = nn.Identity() if dt_proj is None else _linear_of(dt_proj)

    def forward(self, x: Tensor, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, D) to delta (B, L, D) or, without `dt_proj`, (B, L, R), and to B and C (B, L, N)."""
        dt, B, C = split_projection(self.x_proj(x), d_state)
        return self.dt_proj(dt), B, C


def _linear_of(weight: Tensor) -> Linear:
    layer = Linear(*reversed(weight.shape), bias=False, device='meta')
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    return layer


class SelectiveSSM(nn.Module):
    """Selective scan of one token map along K directions, one set of parameters each, summed in pixel order.

    Parameters: `x_proj_weight` (K, R + 2 N, D), `A_log` (K, D, N), `D` (K, D), `dt_proj_bias` (K, D) and, for
    `mixer='mamba1'`, `dt_proj_weight` (K, D, R). For 'mamba2', R is the number of heads of D / R channels: the first R
    outputs of x_proj are the steps of the heads, `A_log` is (K, R, 1) and `dt_proj_bias` (K, R).
    `split_projections` makes the weights of x_proj and dt_proj linear layers, `directions.{k}.x_proj` and so on.

    Args:
        d_inner: Channels D.
        d_state: States N per channel.
        dt_rank: R.
        directions: K.
        mixer: 'mamba1' or 'mamba2'.
        bias_count: How often the bias of the steps is added.
        local_window: Steps per window of LBMamba's local backward scan, which shares the weights; 0: none.

    Raises:
        ValueError: If `mixer` is neither, the heads do not divide the channels, or there is no such window.

    Source: arXiv:2312.00752 (mamba1), arXiv:2405.21060 (mamba2), arXiv:2401.10166 (directions), arXiv:2506.15976
    (local backward scan).
    """

    def __init__(
        self,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        directions: int,
        mixer: str = 'mamba1',
        bias_count: int = 1,
        local_window: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if mixer not in ('mamba1', 'mamba2'):
            raise ValueError(f'mixer is {mixer!r}; allowed are mamba1 and mamba2')
        if mixer == 'mamba2' and d_inner % dt_rank:
            raise ValueError(f'{dt_rank} heads do not divide {d_inner} channels')
        dd = {'device': device, 'dtype': dtype}
        check_local_window(local_window)
        self.mixer, self.d_state, self.bias_count, self.local_window = mixer, d_state, bias_count, local_window
        self.directions = None
        self.x_proj_weight = nn.Parameter(torch.empty(directions, dt_rank + 2 * d_state, d_inner, **dd))
        if mixer == 'mamba1':
            self.dt_proj_weight = nn.Parameter(torch.empty(directions, d_inner, dt_rank, **dd))
            self.dt_proj_bias = nn.Parameter(torch.empty(directions, d_inner, **dd))
            self.A_log = nn.Parameter(torch.empty(directions, d_inner, d_state, **dd))
        else:
            self.register_parameter('dt_proj_weight', None)
            self.dt_proj_bias = nn.Parameter(torch.empty(directions, dt_rank, **dd))
            self.A_log = nn.Parameter(torch.empty(directions, dt_rank, 1, **dd))
        self.D = nn.Parameter(torch.empty(directions, d_inner, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as VMamba does: 'v0' for mamba1, 'v2' for mamba2."""
        if self.D.is_meta:  # slow there, and nothing to fill
            return
        self.join_projections()
        bound = self.x_proj_weight.shape[-1] ** -0.5  # what nn.Linear starts with
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        nn.init.ones_(self.D)
        if self.dt_proj_weight is None:
            nn.init.zeros_(self.A_log)
            nn.init.uniform_(self.dt_proj_bias, 0.0, 0.1)
        else:
            bound = self.dt_proj_weight.shape[-1] ** -0.5
            nn.init.uniform_(self.dt_proj_weight, -bound, bound)
            init_dt_bias(self.dt_proj_bias)
            init_A_log(self.A_log)

    def project(self, x: Tensor, index: int = -1) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What steps, B and C are for tokens (B, L, D); `index` is that of `forward`.

        Returns:
            The steps of low rank, (B, L, K, R), B and C, (B, L, K, N), and what the former are to be multiplied by,
            (K, D, R); or, and None then, the steps themselves: (B, L, K, D), or (B, L, K, R) of one per head.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            if self.directions is not None:
                chosen = self.directions if index < 0 else self.directions[index : index + 1]
                parts = [direction(x, self.d_state) for direction in chosen]
                return *(torch.stack(part, 2) for part in zip(*parts, strict=True)), None
        x_proj, dt_proj = self.x_proj_weight, self.dt_proj_weight
        if index >= 0:
            x_proj = x_proj[index : index + 1]
            if dt_proj is not None:
                dt_proj = dt_proj[index : index + 1]
        projected = linear(x, x_proj.flatten(0, 1))
        projected = projected.reshape(x.shape[0], x.shape[1], x_proj.shape[0], x_proj.shape[1])
        dt, B, C = split_projection(projected, self.d_state)
        return dt, B, C, dt_proj

    @torch.jit.ignore
    def split_projections(self) -> None:
        """Replace `x_proj_weight` and `dt_proj_weight` by linear layers, one of each per direction."""
        if self.directions is None:
            dt_proj = [None] * len(self.D) if self.dt_proj_weight is None else self.dt_proj_weight
            pairs = zip(self.x_proj_weight, dt_proj, strict=True)
            del self.directions  # an attribute, and it becomes a module
            self.directions = nn.ModuleList(DirectionProjections(*pair) for pair in pairs).train(self.training)
            self.x_proj_weight = self.dt_proj_weight = None

    @torch.jit.ignore
    def join_projections(self) -> None:
        """Undo `split_projections`.

        Raises:
            ValueError: If an adapter or quantiser has put something else in the place of a layer or of its weight, or
                given a layer a bias.
        """
        if self.directions is None:
            return
        stacked = {}
        for name in ('x_proj', 'dt_proj') if self.mixer == 'mamba1' else ('x_proj',):
            layers = [getattr(direction, name) for direction in self.directions]
            if any(layer.bias is not None for layer in layers):
                raise ValueError(f'{name} has a bias, for which the joined parameters have no place')
            held = {type(layer) for layer in layers} | {type(layer.weight) for layer in layers}
            if other := held - {Linear, nn.Parameter}:
                raise ValueError(
                    f'{name} is held by {", ".join(sorted(cls.__name__ for cls in other))}; only plain linear layers '
                    'can be joined: unload or merge adapters first'
                )
            stacked[f'{name}_weight'] = nn.Parameter(
                torch.stack([layer.weight.detach() for layer in layers]),
                any(layer.weight.requires_grad for layer in layers),
            )
        del self.directions
        self.directions = None
        for name, weight in stacked.items():
            setattr(self, name, weight)

    def forward(self, x: Tensor, order: Tensor, index: int = -1, per_step: bool = False) -> Tensor:
        """Scan.

        Args:
            x: Tokens in pixel order, (B, L, D).
            order: Visiting orders, (K, T); (1, T) with `index`.
            index: The one parameter set to use; -1: all, one per direction.
            per_step: Return the output of each step instead of adding it to its token.

        Returns:
            (B, L, D), or (B, T, K, D) with `per_step`; dtype of `x`.
        """
        A_log, D, dt_bias = self.A_log, self.D, self.dt_proj_bias
        if index >= 0:
            A_log, D, dt_bias = A_log[index : index + 1], D[index : index + 1], dt_bias[index : index + 1]
        dt_bias = at_least_fp32(dt_bias)
        if self.bias_count != 1:
            dt_bias = dt_bias * self.bias_count
        dt, B, C, dt_proj = self.project(x, index)
        return scan_projected(
            u=x,
            dt=dt,
            dt_proj=dt_proj,
            A=decay_rates(A_log),
            B=B,
            C=C,
            D=at_least_fp32(D),
            delta_bias=dt_bias,
            order=order,
            merge=not per_step,
            per_step=per_step,
            local_window=self.local_window,
        )


def split_projections(model: nn.Module) -> list[str]:
    """Make the scans' projections linear layers that are found by name, as adapters and quantisers ask for.

    Most families keep the projections of all directions in one parameter, (K, out, in), which is faster. They become
    `directions.{k}.x_proj` and `directions.{k}.dt_proj`, exact `nn.Linear` layers that give the same outputs to
    rounding; Vim's and PlainMamba's have these names anyway. Load weights before; `join_projections` restores the
    parameters, and with them the names of checkpoints.

    Args:
        model: Model, changed in place; optimisers and compiled versions of it are made afterwards.

    Returns:
        Names of the modules that were split; none if the model has no such parameters.
    """
    scans = {name: module for name, module in model.named_modules() if isinstance(module, SelectiveSSM)}
    for module in scans.values():
        module.split_projections()
    return list(scans)


def join_projections(model: nn.Module) -> None:
    """Undo `split_projections`, so that weights have the names of checkpoints again.

    Args:
        model: Model, changed in place.

    Raises:
        ValueError: If an adapter or quantiser still holds one of the layers.
    """
    for module in list(model.modules()):
        if isinstance(module, SelectiveSSM):
            module.join_projections()
