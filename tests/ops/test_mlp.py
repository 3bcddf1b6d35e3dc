"""MLPs in C++: the values of their layers, and the layers themselves where somebody could tell the difference."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import visionssm.ops.products as products
from visionssm.layers import Mlp
from visionssm.ops import available_backends, cpu, mlp_at_once, mlp_cpu, onednn, use_backend

pytestmark = pytest.mark.skipif(
    bool(available_backends()['cpu']) or not onednn.ON_X86, reason='no C++ kernel, or not for MLPs, on this machine'
)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """No size is too small."""
    monkeypatch.setattr(products, '_LEAST_WORK', 0)
    monkeypatch.setattr(products, '_LEAST_ROWS', 0)


def mlp_in_fp64(x, first, first_bias, second, second_bias):
    x, first, first_bias, second, second_bias = (
        None if t is None else t.double() for t in (x, first, first_bias, second, second_bias)
    )
    return F.linear(F.gelu(F.linear(x, first, first_bias)), second, second_bias)


# one vector and less, both panels at the end, several blocks; rows of weights left over, more inputs than at once
@pytest.mark.parametrize('rows, inputs, hidden, outputs', [(1, 1, 1, 1), (67, 7, 9, 11), (520, 200, 200, 26)])
@pytest.mark.parametrize('bias', [True, False])
def test_values(rows, inputs, hidden, outputs, bias):
    torch.manual_seed(0)
    x, first, second = torch.randn(rows, inputs), torch.randn(hidden, inputs), torch.randn(outputs, hidden)
    biases = (torch.randn(hidden), torch.randn(outputs)) if bias else (None, None)
    args = (x, first / inputs**0.5, biases[0], second / hidden**0.5, biases[1])
    with torch.no_grad():
        got = mlp_at_once(*args)
    assert (got - mlp_in_fp64(*args)).abs().max() < 4e-6


def test_gelu():
    x = torch.cat([torch.linspace(-8, 8, 10001), torch.tensor([-1e30, 1e30, torch.nan, torch.inf, -torch.inf])])[
        :, None
    ]
    one = torch.ones(1, 1)
    got, expected = mlp_cpu.mlp(x, one, None, one, None), F.gelu(x.double())
    assert ((got - expected).abs() <= 4e-7 * x.abs().clamp(1e-6))[:10003].all()
    assert got[10000:].flatten()[:3].tolist() == [8.0, 0.0, torch.tensor(1e30)]
    assert got[10003:].isfinite().sum() == 0


def test_others_are_asked_where_it_would_show():
    mlp, x = Mlp(8, 16), torch.randn(3, 40, 8)
    args = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    expected = mlp(x)
    assert mlp_at_once(x, *args) is None  # gradients
    with torch.no_grad():
        assert mlp_at_once(x, *args) is not None
        assert mlp_at_once(x.double(), *args) is None
        assert mlp_at_once(x[..., :7], *args) is None
        with use_backend('torch'):
            assert mlp_at_once(x, *args) is None
        with torch.autocast('cpu', torch.bfloat16):
            assert mlp_at_once(x, *args) is None and mlp(x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            mlp(x)
        assert counter.get_total_flops() == 2 * 2 * 120 * 8 * 16
        mapped = torch.func.vmap(mlp)(x)
        _, tangent = torch.func.jvp(mlp, (x,), (x,))
        assert torch.allclose(mapped, expected, atol=1e-6) and tangent.abs().sum() > 0
        seen = []
        mlp.act.register_forward_hook(lambda *args: seen.append(1))
        assert torch.allclose(mlp(x), expected, atol=1e-6) and seen


def test_layers_run_at_once(monkeypatch):
    mlp, x, calls = Mlp(8, 16), torch.randn(3, 40, 8), []
    monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: calls.append(1) or F.linear(x, self.weight, self.bias))
    with torch.inference_mode():
        expected = mlp(x.transpose(0, 1)).transpose(0, 1)  # any strides
        assert not calls
        mlp.act = nn.GELU('tanh')
        mlp(x)
        assert calls
        mlp.act = nn.GELU()
        monkeypatch.setattr(products, '_LEAST_ROWS', 1000)
        assert torch.allclose(mlp(x), expected, atol=1e-6)


def test_programs_are_of_any_size():
    mlp = Mlp(8, 16).eval()
    with torch.no_grad():
        size = {0: torch.export.Dim('tokens', min=2, max=1 << 20)}
        program = torch.export.export(mlp, (torch.randn(40, 8),), dynamic_shapes=(size,)).module()
        x = torch.randn(70, 8)
        assert torch.allclose(program(x), mlp(x), atol=1e-6)
    assert not any('visionssm' in str(node.target) for node in program.graph.nodes)


def test_working_memory_is_checked(monkeypatch):
    monkeypatch.setattr(mlp_cpu, '_library', lambda: type('Library', (), {'visionssm_mlp': lambda self, call: 1})())
    assert not cpu.refuse(products.TensorProblem('cpu', torch.float32))
    with pytest.raises(MemoryError, match='MLP'):
        mlp_cpu.mlp(torch.ones(2, 2), torch.ones(2, 2), None, torch.ones(2, 2), None)
