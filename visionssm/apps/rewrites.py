"""A model that computes the same with smaller extremes inside: what MambaQuant does before it quantises.

Every step is exact but for rounding, and the model is compared with itself before and after. Source: arXiv:2501.13484;
MambaQuant/MambaQuant@a4803c4. Differs: rotations of the steps are each direction's own (upstream's accumulate from
layer to layer); the covariance of the stream is that of all layers, not of the last; the factor of the gate multiplies
what out_proj reads, as the gate is inside the scan's kernel; what needs products at run time (out_proj's input, states)
is not rotated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.layers import SelectiveSSM, StepProjector
from visionssm.models.isotropic import Isotropic

from .rotations import karhunen_loeve

TOLERANCE = 1e-4  # of the outputs' standard deviation; what fp32 rounds is below 1e-5 of it
_LEAST_SCALE = 1e-2


class ScaledLinear(nn.Linear):
    """A linear layer of inputs that are multiplied channel by channel, as torchao's `act_pre_scale` does.

    Args:
        linear: Whose weight and bias it takes.
        input_scale: Factors, one per input.
    """

    def __init__(self, linear: nn.Linear, input_scale: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device='meta')
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer('input_scale', input_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply and project."""
        return F.linear(input * self.input_scale, self.weight, self.bias)


@contextmanager
def watch_inputs(layers: Iterable[nn.Module], see: Callable[[nn.Module, Tensor], Any]) -> Iterator[None]:
    """Within the context, `see` gets every layer's input whenever it is called."""
    handles = [layer.register_forward_pre_hook(lambda layer, args: see(layer, args[0])) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Peak(NamedTuple):
    """How far the inputs of a layer reach.

    Attributes:
        layer: Its name.
        before: Largest magnitude over standard deviation, of all values.
        after: The same in the rewritten model.
    """

    layer: str
    before: float
    after: float


def peaks(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, float]:
    """Largest magnitude over standard deviation of every linear layer's inputs, by the layer's name."""
    names = {m: name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    seen: dict[str, list[Tensor]] = {}

    def see(layer: nn.Module, x: Tensor) -> None:
        x = effective_input(layer, x).double()
        found = torch.stack([x.abs().amax(), x.sum(), x.square().sum(), torch.tensor(x.numel())])
        seen.setdefault(names[layer], []).append(found)

    with watch_inputs(names, see):
        _run(model, batches)
    found = {}
    for name, values in seen.items():
        largest, (_, total, squares, count) = max(x[0] for x in values), torch.stack(values).sum(0)
        found[name] = (largest / (squares / count - (total / count) ** 2).sqrt()).item()
    return found


def effective_input(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies with its weight, given its input."""
    return x * layer.input_scale if isinstance(layer, ScaledLinear) else x


class Moments:
    """Count, mean and covariance of row vectors."""

    def __init__(self) -> None:
        self.count, self.sum, self.products = 0, 0.0, 0.0

    def add(self, x: Tensor) -> None:
        """Take in (..., C)."""
        x = x.detach().flatten(0, -2).double()
        self.count += len(x)
        self.sum = self.sum + x.sum(0)
        self.products = self.products + x.T @ x

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C)."""
        return self.products / self.count - torch.outer(self.mean, self.mean)


@torch.no_grad()
def rewrite(model: nn.Module, batches: Sequence[Tensor]) -> list[str]:
    """Rewrite a model in place.

    Where one residual stream runs through the model, and nothing but norms and projections works on it (Vim, LBVim,
    PlainMamba): norms are folded into what reads them, and the stream is rotated by K H, principal components and
    Hadamard. Its features are rotated, too; its logits are not. Elsewhere a norm and the one projection that reads it
    share the range of each channel. In every model: out_proj's input is smoothed, by the norm before it or else by
    factors of its own; the input of dt_proj loses its mean and is rotated, where the two projections are layers.

    Args:
        model: In evaluation mode, fp32, on the CPU.
        batches: Images, (B, C, H, W).

    Returns:
        What was done, and what was not and why, one line each.

    Raises:
        ValueError: If nothing applies to the model, or it does not give the same outputs afterwards.
    """
    before = model(batches[0])
    notes = [line for step in (_rotate_stream, _smooth, _rotate_steps) if (line := step(model, batches))]
    if not any(line.startswith(_DONE) for line in notes):
        raise ValueError(
            f'{type(model).__name__} has nothing that can be rotated or smoothed; take int8-dynamic instead'
        )
    error = ((model(batches[0]) - before).abs().max() / before.std()).item()
    if not error <= TOLERANCE:
        raise ValueError(f'{type(model).__name__} is off by {error:.1e} standard deviations after it was rewritten')
    return [*notes, f'{_DONE} outputs differ by {error:.1e} standard deviations']


_DONE, _LEFT = 'rewritten:', 'left as it is:'


def norm_pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Linear]]:
    """Norms with an affine part, each with the one linear layer that reads it."""
    return [pair for m in model.modules() if hasattr(m, 'projected_norms') for pair in m.projected_norms()]


def _run(model: nn.Module, batches: Sequence[Tensor]) -> None:
    for images in batches:
        model(images)


def _obstacle(model: nn.Module) -> str:
    if not isinstance(model, Isotropic):
        return 'norms stand between its stages'
    if not isinstance(model.final_projection(), nn.Linear):
        return 'no classifier reads it'
    return model.stream_obstacle()


def _rotate_stream(model: nn.Module, batches: Sequence[Tensor]) -> str:
    if reason := _obstacle(model):
        return f'{_LEFT} the residual stream: {reason}'
    readers = [*norm_pairs(model), (model.norm, model.final_projection())]
    dim = model.embed_dim
    for norm, linear in readers:
        _fold(norm, linear, dim)
    moments = Moments()
    with watch_inputs([linear for _, linear in readers[:-1]], lambda _, x: moments.add(x)):
        _run(model, batches)
    rotation = karhunen_loeve(moments.covariance, keeps_mean=isinstance(model.norm, nn.LayerNorm))
    for _, linear in readers:  # a classifier may read several tokens side by side
        linear.weight.copy_((linear.weight.double().unflatten(1, (-1, dim)) @ rotation).flatten(1))
    writers = [model.patch_embed.proj, *(block.mixer.out_proj for block in model.blocks)]
    for layer in writers:
        layer.weight.copy_((rotation.T @ layer.weight.double().flatten(1)).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() @ rotation)
    for embedding in model.parameters(recurse=False):
        embedding.copy_(embedding.double() @ rotation)
    return f'{_DONE} {len(readers)} norms folded, the residual stream of {dim} channels rotated'


def _fold(norm: nn.Module, linear: nn.Linear, dim: int) -> None:
    """Move a norm's weight and bias into the layer that reads it."""
    weight = linear.weight.double().unflatten(1, (-1, dim))
    if getattr(norm, 'bias', None) is not None:
        _add_bias(linear, (weight @ norm.bias.double()).sum(1))
        norm.bias.zero_()
    linear.weight.copy_((weight * norm.weight.double()).flatten(1))
    norm.weight.fill_(1)


def _add_bias(linear: nn.Linear, bias: Tensor) -> None:
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros(linear.out_features), requires_grad=False)
    linear.bias.copy_(linear.bias.double() + bias)


def _smooth(model: nn.Module, batches: Sequence[Tensor]) -> str:
    folded = not _obstacle(model)  # these norms have no weight left that could take a factor, and need none
    pairs = [] if folded else norm_pairs(model)
    fed = {linear for _, linear in norm_pairs(model)}
    outputs = [
        name
        for name, m in model.named_modules()
        if name.endswith('.out_proj') and isinstance(m, nn.Linear) and m not in fed
    ]
    linears = [*(linear for _, linear in pairs), *map(model.get_submodule, outputs)]
    largest = {linear: torch.zeros(()) for linear in linears}

    def see(linear: nn.Module, x: Tensor) -> None:
        largest[linear] = torch.maximum(largest[linear], x.abs().flatten(0, -2).amax(0))

    with watch_inputs(linears, see):
        _run(model, batches)

    def scales(linear: nn.Linear) -> Tensor:
        weights = linear.weight.abs().amax(0).clamp(min=1e-8)
        return (largest[linear] / weights).sqrt().clamp(min=_LEAST_SCALE)

    for norm, linear in pairs:
        scale = scales(linear)
        for x in norm.parameters():
            x.div_(scale)
        linear.weight.mul_(scale)
    for name in outputs:
        linear = model.get_submodule(name)
        scale = scales(linear)
        linear.weight.mul_(scale)
        place, _, leaf = name.rpartition('.')
        setattr(model.get_submodule(place), leaf, ScaledLinear(linear, 1 / scale))
    done = [f'{len(pairs)} norms' * bool(pairs), f'{len(outputs)} inputs of out_proj' * bool(outputs)]
    return f'{_DONE} {" and ".join(filter(None, done))} smoothed' if any(done) else ''


def _rotate_steps(model: nn.Module, batches: Sequence[Tensor]) -> str:
    steps = list(_steps(model))
    if not steps:
        return f'{_LEFT} the steps: no linear layer of their own makes them'
    moments = {step.dt_proj: Moments() for step in steps}
    with watch_inputs(moments, lambda layer, x: moments[layer].add(x)):
        _run(model, batches)
    for x_proj, dt_proj, bias, bias_count in steps:
        seen, rank = moments[dt_proj], dt_proj.in_features
        rotation = karhunen_loeve(seen.covariance)
        shift = torch.zeros(x_proj.out_features, dtype=torch.float64)
        shift[:rank] = -seen.mean @ rotation
        x_proj.weight[:rank] = (rotation.T @ x_proj.weight[:rank].double()).float()
        _add_bias(x_proj, shift)
        weight = dt_proj.weight.double()
        bias.add_(weight @ seen.mean / bias_count)
        dt_proj.weight.copy_(weight @ rotation)
    return f'{_DONE} the steps of {len(steps)} scans centred and rotated'


class _Step(NamedTuple):
    """What makes the steps of one direction: softplus(dt_proj(the first outputs of x_proj) + bias_count * bias)."""

    x_proj: nn.Linear
    dt_proj: nn.Linear
    bias: Tensor
    bias_count: int


def _steps(model: nn.Module) -> Iterator[_Step]:
    for m in model.modules():
        if isinstance(m, SelectiveSSM):
            if m.mixer == 'mamba1' and m.directions is not None:
                for direction, bias in zip(m.directions, m.dt_proj_bias, strict=True):
                    yield _Step(direction.x_proj, direction.dt_proj, bias, m.bias_count)
        elif isinstance(m, StepProjector):
            yield _Step(m.x_proj, m.dt_proj, m.dt_proj.bias, m.bias_count)
