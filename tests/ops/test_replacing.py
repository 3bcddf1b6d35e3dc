"""Operators pause the mode that replaces functions, and are called as operators where somebody watches."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from visionssm.ops import linear, na_av, na_qk, na_weights, products, replacing, selective_scan
from visionssm.ops.replacing import Replacing
from visionssm.ops.selective_scan import scan_tokens


class Counting(Replacing):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.asked += 1
        return super().__torch_function__(func, types, args, kwargs)

    asked = 0


def scan_arguments():
    torch.manual_seed(0)
    tokens, states = torch.randn(1, 4, 6), torch.randn(1, 4, 2, 3)
    return tokens, torch.rand(1, 4, 2, 6), -torch.rand(2, 6, 3), states, states


def test_replaces():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with Replacing({F.linear: lambda x, weight: 'ours'}):
        assert replacing.is_on() and F.linear(x, weight) == 'ours'
        with replacing.paused():
            assert isinstance(F.linear(x, weight), torch.Tensor)
    assert not replacing.is_on() and isinstance(F.linear(x, weight), torch.Tensor)
    with pytest.raises(ZeroDivisionError), Replacing({}):
        1 / 0  # noqa: B018
    assert not replacing.is_on()


def test_operators_pause_it():
    x, q = torch.randn(2, 3), torch.randn(1, 2, 5, 5, 4)
    weights = torch.rand(1, 2, 5, 5, 9)
    for call in (
        lambda: scan_tokens(*scan_arguments()),
        lambda: linear(x, x),
        lambda: na_qk(q, q, 3, [1, 1]),
        lambda: na_av(weights, q, 3, [1, 1]),
    ):
        expected = call()
        with Counting({}) as mode:
            got = call()
        assert mode.asked < 8  # of a hundred and more
        torch.testing.assert_close(got, expected)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Doubled(torch.Tensor):
    """What it holds counts twice, and knows it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [2 * x.as_subclass(torch.Tensor) if isinstance(x, cls) else x for x in args]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*plain, **(kwargs or {}))


def test_others_are_asked():
    """Modes and classes of somebody else."""
    q = torch.randn(1, 2, 5, 5, 4)
    with Replacing({}):
        with Replacing({}):
            pass
        assert replacing.is_on()
        with replacing.paused(q, q.as_subclass(Doubled)):
            assert torch.add(torch.ones(1).as_subclass(Doubled), 0) == 2
        with Counting({}) as mode, replacing.paused(q):
            q.shape  # noqa: B018
    assert mode.asked


@pytest.mark.parametrize('kind', ['negated', 'zeros', 'dual'])
def test_tensors_that_are_not_what_they_hold(kind):
    tokens, delta, A, B, C = scan_arguments()
    q = torch.randn(1, 2, 5, 5, 4)
    with torch.no_grad(), forward_ad.dual_level():
        wrap = {
            'negated': torch._neg_view,
            'zeros': lambda x: torch._efficientzerotensor(x.shape),
            'dual': lambda x: forward_ad.make_dual(x, torch.ones_like(x)),
        }[kind]
        for call in (
            lambda x: scan_tokens(tokens, delta, A, x(B), C),
            lambda x: na_qk(x(q), q, 3, [1, 1]),
            lambda x: na_weights(x(q), q, torch.ones(2, 5, 5), [1, 1]),
        ):
            got = call(wrap)
            assert (forward_ad.unpack_dual(got).tangent is not None) == (kind == 'dual')
            if kind != 'dual':
                torch.testing.assert_close(got, call(lambda x: wrap(x).clone()))


def test_watchers_see_operators(monkeypatch):
    monkeypatch.setattr(products, '_LEAST_WORK', 0)
    inputs = scan_arguments()
    plain = selective_scan(*inputs)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        profiled = selective_scan(*inputs)
    assert 'visionssm::selective_scan' in {event.key for event in record.key_averages()}
    with Counting({}) as mode:
        counted = selective_scan(*inputs)
    assert mode.asked > 20
    with Seen() as seen:
        dispatched = selective_scan(*inputs)
    assert 'visionssm.selective_scan.default' in seen.names
    inputs[0].requires_grad_()
    with_gradient = selective_scan(*inputs)
    assert with_gradient.requires_grad and not plain.requires_grad
    for other in (profiled, counted, dispatched, with_gradient):
        assert torch.equal(other, plain)
