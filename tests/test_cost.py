"""Counted parameters and multiply-adds, and the authors' figures beside them."""

import pytest
import torch
from torch import nn

import visionssm  # noqa: F401
from visionssm.catalog.macs import count_macs
from visionssm.catalog.models import differs
from visionssm.ops import na_av, na_qk, selective_scan
from visionssm.weights.published import FAMILIES


class Scan(nn.Module):
    """One scan of every part: four directions, skip and gate."""

    def forward(self, x):
        batch, _, height, width = x.shape
        length, channels, directions, states = height * width, 8, 4, 16
        u, z = x.new_empty(2, batch, length, channels)
        delta = x.new_empty(batch, length, directions, channels)
        B, C = x.new_empty(2, batch, length, directions, states)
        A, D = x.new_empty(directions, channels, states), x.new_empty(directions, channels)
        order = torch.empty(directions, length, dtype=torch.int32, device=x.device)
        return selective_scan(u, delta, A, B, C, D, z, order=order)


class Neighborhood(nn.Module):
    def forward(self, x):
        tokens = x.unsqueeze(1).movedim(2, 4).expand(-1, 2, -1, -1, -1)
        return na_av(na_qk(tokens, tokens, 7, [1, 1]), tokens, 7, [1, 1])


@pytest.mark.parametrize(
    'make, expected',
    [
        (lambda: nn.Conv2d(3, 8, 3, padding=1, bias=False), 8 * 3 * 9 * 100),
        (Scan, 100 * 4 * 8 * (9 * 16 + 2)),
        (Neighborhood, 2 * 2 * 100 * 49 * 3),
    ],
)
def test_count(make, expected):
    with torch.device('meta'):
        model = make()
    assert count_macs(model, (3, 10, 10)) == expected


@pytest.mark.parametrize('key', FAMILIES)
def test_differences_are_explained(key):
    for name, facts in FAMILIES[key].models.items():
        params = differs(facts.params / 1e6, facts.reported_params)
        macs = differs(facts.macs / 1e9, facts.reported_gflops)
        assert (params or macs) == bool(facts.remark), f'{name}: {facts}'


def test_differs():
    assert not differs(4.86, '4.9') and not differs(100.4, '101') and not differs(1.0, '')
    assert differs(4.84, '4.9') and differs(34.8, '34')
