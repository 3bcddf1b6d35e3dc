"""Random scans on every backend against the definition in fp64: outputs and all gradients.

`VISIONSSM_FUZZ_CASES` says how many per backend; 500 unless it is set. A case is drawn from its number alone, so a
failure names what to run again: `check('cpu', 123)`.
"""

import math
import os
import random

import pytest
import torch

from visionssm.ops import available_backends, selective_scan
from visionssm.testing import assert_close

CASES = int(os.environ.get('VISIONSSM_FUZZ_CASES', '500'))
PART = 50
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
BACKENDS = [name for name, why in available_backends(DEVICE).items() if not why and name != 'reference']
TOKENS = ('u', 'delta', 'B', 'C', 'z')


class Case:
    """A random scan.

    Attributes:
        tensors: Its inputs, in the dtypes that the backend gets.
        options: Its other arguments.
    """

    def __init__(self, number: int) -> None:
        self.random = draw = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        self.dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
        batch, length, directions = draw.choice([1, 1, 2, 3, 0]), draw.randint(1, 12), draw.randint(1, 3)
        heads, per_head, states = (
            draw.choice([1, 2, 3, 8, 17]),
            draw.choice([1, 1, 2]),
            draw.choice([1, 1, 2, 3, 5, 16]),
        )
        channels, softplus = heads * per_head, draw.random() < 0.7
        own, rates = draw.random() < 0.4, draw.choice([1, states])
        self.tensors = {
            'u': self.normal(batch, length, directions, channels) if own else self.normal(batch, length, channels),
            'delta': self.normal(batch, length, directions, heads),
            'A': -torch.exp(self.normal(directions, heads, rates) * 0.5),
            'B': self.normal(batch, length, directions, states),
            'C': self.normal(batch, length, directions, states),
            'D': self.maybe(directions, channels),
            'z': self.maybe(batch, length, channels),
            'delta_bias': self.maybe(directions, heads),
        }
        if not softplus:  # steps are positive
            for name in ('delta', 'delta_bias'):
                if self.tensors[name] is not None:
                    self.tensors[name] = self.tensors[name].abs() * 0.3
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        for name, x in self.tensors.items():
            if x is not None:
                in_full = name not in TOKENS or (name != 'u' and draw.random() < 0.2)
                self.tensors[name] = self.strided(x.to(wide if in_full else self.dtype))
        mode = draw.choice(['merged', 'directions', 'steps'])
        steps, order, param_order = length, None, None
        if draw.random() < 0.8:
            steps = draw.choice([length, draw.randint(1, 2 * length), draw.randint(0, length)])
            order = self.table(directions, steps, length)
        if draw.random() < 0.3:
            param_order = self.table(directions, steps, length)
        self.options = {
            'delta_softplus': softplus,
            'order': order,
            'param_order': param_order,
            'merge': mode == 'merged',
            'per_step': mode == 'steps',
            'local_window': draw.choice([None, None, 1, 2, 5, steps + 3, 10**8]),
        }

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def maybe(self, *shape: int) -> torch.Tensor | None:
        return self.normal(*shape) if self.random.random() < 0.6 else None

    def strided(self, x: torch.Tensor) -> torch.Tensor:
        """The same values in another layout."""
        kind = self.random.choice(['plain', 'plain', 'offset', 'transposed', 'gaps'])
        if kind == 'offset':  # a slice of a wider tensor
            wide = torch.zeros(*x.shape[:-1], x.shape[-1] + 5, dtype=x.dtype)
            wide[..., 3:-2] = x
            return wide[..., 3:-2]
        if kind == 'transposed':
            axes = self.random.sample(range(x.ndim), x.ndim)
            inverse = sorted(range(x.ndim), key=axes.__getitem__)
            return x.permute(axes).contiguous().permute(inverse)
        if kind == 'gaps':
            wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
            wide[..., ::2] = x
            return wide[..., ::2]
        return x

    def table(self, directions: int, steps: int, length: int) -> torch.Tensor:
        """Permutations, or visits with repeats and omissions."""
        if steps == length and self.random.random() < 0.5:
            rows = [torch.randperm(length, generator=self.generator) for _ in range(directions)]
            table = torch.stack(rows)
        else:
            table = torch.randint(length, (directions, steps), generator=self.generator)
        table = table.to(self.random.choice([torch.int32, torch.int64]))
        return table.t().contiguous().t() if self.random.random() < 0.3 else table

    def run(self, backend: str, device: str, work: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Output, last state and gradients; with `work`, of the same values in that dtype."""
        leaves = {
            name: None if x is None else x.detach().to(device, work or x.dtype).requires_grad_()
            for name, x in self.tensors.items()
        }
        options = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in self.options.items()}
        out, state = selective_scan(**leaves, **options, return_last_state=True, backend=backend)
        generator = torch.Generator().manual_seed(7)
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, state)]
        weights = [weight.to(self.dtype if i == 0 else torch.float32) for i, weight in enumerate(weights)]
        loss = sum((x * weight.to(device, x.dtype)).sum() for x, weight in zip((out, state), weights, strict=True))
        names = [name for name, x in leaves.items() if x is not None]
        grads = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True, materialize_grads=True)
        return {'out': out, 'last state': state, **dict(zip(names, grads, strict=True))}


def check(backend: str, number: int) -> None:
    """Compare one case with the definition."""
    case = Case(number)
    if available_backends(DEVICE, case.dtype)[backend]:
        case.dtype = torch.float32
        case.tensors = {name: None if x is None else x.float() for name, x in case.tensors.items()}
    expected = case.run('reference', 'cpu', torch.float64)
    for name, actual in case.run(backend, DEVICE).items():
        label = f'{backend}, case {number}, {name}'
        assert_close(label, actual, expected[name], case.dtype, grad=name[0] not in 'ol')


@pytest.mark.parametrize('first', range(0, CASES, PART))
@pytest.mark.parametrize('backend', BACKENDS)
def test_random_scans(backend, first):
    for number in range(first, min(first + PART, CASES)):
        check(backend, number)


@pytest.mark.parametrize('backend', [name for name in BACKENDS if name != 'triton'])  # it sums infinities otherwise
def test_random_scans_with_values_that_are_not_finite(backend):
    """What is infinite and what is NaN is as in the definition: 0 where no step ends, whatever the gate there."""
    for number in range(CASES // 5):
        case = Case(number)
        case.tensors = {name: None if x is None else x.float().contiguous() for name, x in case.tensors.items()}
        flat = [x.view(-1) for x in case.tensors.values() if x is not None and x.numel()]
        for _ in range(case.random.randint(1, 2)):
            x = case.random.choice(flat)
            x[case.random.randrange(len(x))] = case.random.choice([math.inf, -math.inf, math.nan])
        expected = case.run('reference', DEVICE)
        for name, actual in case.run(backend, DEVICE).items():
            kinds = [torch.where(x.isfinite(), 0.0, x) for x in (actual, expected[name])]
            torch.testing.assert_close(*kinds, equal_nan=True, msg=f'{backend}, case {number}, {name}')
