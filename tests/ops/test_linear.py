"""Linear layers by oneDNN: the same values and gradients as torch's, and torch's own where it can't serve."""

import pytest
import torch
import torch.nn.functional as F

import visionssm.ops.products as module
from visionssm.layers import Linear
from visionssm.ops import available_backends, linear, onednn, use_backend

needs_onednn = pytest.mark.skipif(
    bool(available_backends(op='linear')['onednn']), reason='torch has no oneDNN product on this machine'
)
OP = torch.ops.visionssm.linear


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """No size is too small and no processor too old."""
    monkeypatch.setattr(module, '_LEAST_WORK', 0)
    monkeypatch.setattr(onednn, 'IS_FASTER', True)


@pytest.fixture
def calls(monkeypatch):
    """The calls of F.linear."""
    seen = []

    def counted(*args):
        seen.append(args)
        return torch.matmul(args[0], args[1].t()) + (0 if args[2] is None else args[2])

    monkeypatch.setattr(module.F, 'linear', counted)
    return seen


def tensors(*shape, out=7, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return (
        torch.randn(*shape, dtype=dtype, requires_grad=True),
        torch.randn(out, shape[-1], dtype=dtype, requires_grad=True),
        torch.randn(out, dtype=dtype, requires_grad=True) if bias else None,
    )


@needs_onednn
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(5,), (4, 5), (2, 3, 4, 5), (2, 785, 48)], ids=str)
def test_values_and_gradients(shape, bias):
    args = [x for x in tensors(*shape, bias=bias) if x is not None]
    exact = F.linear(*(x.double() for x in args))
    y = OP(args[0], args[1], args[2] if bias else None)
    torch.testing.assert_close(y, exact.float(), rtol=1e-5, atol=1e-4)
    grad = torch.randn(y.shape)
    for ours, theirs in zip(
        torch.autograd.grad(y, args, grad), torch.autograd.grad(exact, args, grad.double()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_strided_inputs():
    x, weight, bias = tensors(3, 16, 20)
    with torch.no_grad():
        for part in (x[..., 4:12], x[:, ::2, :8], x[:, :8].transpose(1, 2)[..., :8]):
            w = weight[:, :8]
            torch.testing.assert_close(OP(part, w, bias), F.linear(part, w, bias), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_second_gradient():
    x, weight, bias = tensors(4, 5)
    (first,) = torch.autograd.grad(OP(x, weight, bias).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    (expected,) = torch.autograd.grad(F.linear(x, weight, bias).square().sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(expected.sum(), weight)[0], rtol=1e-4, atol=1e-4)


@needs_onednn
def test_op():
    torch.library.opcheck(OP, tensors(2, 6, 5), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_serves(calls):
    x, weight, bias = tensors(4, 5)
    linear(x, weight, bias)
    assert not calls


@needs_onednn
def test_processors_without_wide_vectors(calls, monkeypatch):
    monkeypatch.setattr(onednn, 'IS_FASTER', False)
    linear(*tensors(4, 5))
    assert len(calls) == 1
    with use_backend('linear=onednn'):
        linear(*tensors(4, 5))
    assert len(calls) == 1


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_dtypes(calls, dtype):
    assert linear(*tensors(4, 5, dtype=dtype)).dtype == dtype
    assert calls


def test_autocast(calls):
    with torch.autocast('cpu', torch.bfloat16):
        linear(*tensors(4, 5))
    assert calls


def test_switched_off(calls):
    with torch.backends.mkldnn.flags(enabled=False):
        linear(*tensors(4, 5))
    assert calls


def test_small_ones_and_other_devices(calls, monkeypatch):
    linear(*(x.to('meta') for x in tensors(4, 5)))
    monkeypatch.setattr(module, '_LEAST_WORK', 141)
    linear(*tensors(4, 5))
    assert len(calls) == 2


def test_programs_hold_no_special_operator():
    layer, x = Linear(5, 7), torch.randn(4, 5)
    programs = (
        torch.jit.trace(layer, x).graph,
        torch.jit.script(layer).graph,
        torch.export.export(layer, (x,)).graph,
    )
    assert not any(name in str(program) for program in programs for name in ('visionssm::linear', 'visionssm.linear'))
