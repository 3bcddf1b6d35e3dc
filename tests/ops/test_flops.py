"""Plain counters of torch see every operator, in either direction."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionssm.ops.products as products
from visionssm.ops import attention, linear, na_av, na_qk, selective_scan
from visionssm.weights.published import FAMILIES, model_facts


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    'name', [name for family in FAMILIES.values() for name in family.models if name[:5] == 'test_']
)
def test_a_model_counts_on_the_cpu_as_in_the_catalog(name):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        assert count(lambda: model(torch.zeros(1, *model.pretrained_cfg['input_size']))) == 2 * model_facts(name).macs


def test_gradients_count_twice(monkeypatch):
    monkeypatch.setattr(products, '_LEAST_WORK', 0)
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(6, 8, requires_grad=True)
    product = 2 * 4 * 8 * 6
    assert count(lambda: linear(x, weight).sum().backward()) == 3 * product
    y = linear(x, weight).sum()  # by our operator, where oneDNN serves
    assert count(y.backward) == 2 * product
    q = torch.randn(1, 2, 5, 5, 4, requires_grad=True)
    assert (
        count(lambda: attention(q[0], q[0], q[0]).sum().backward()) == 7 * 2 * 2 * 5 * 25 * 4
    )  # it makes weights anew
    both = 2 * 2 * 25 * 4 * 9 * 2  # queries with keys, weights with values
    assert count(lambda: na_av(na_qk(q, q, 3, [1, 1]), q, 3, [1, 1]).sum().backward()) == 3 * both
    u, B = torch.randn(1, 5, 3, requires_grad=True), torch.randn(1, 5, 2, 4)
    scan = 2 * 5 * 2 * 3 * 9 * 4
    delta, A = torch.randn(1, 5, 2, 3), -torch.ones(2, 3, 4)
    assert count(lambda: selective_scan(u, delta, A, B, B).sum().backward()) == 3 * scan
