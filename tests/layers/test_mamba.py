"""The mixer of Vim over walks of every kind."""

import pytest
import torch

from visionssm.layers import MambaMixer
from visionssm.scans import get_scan, scan_order

WINDOW = {'name': 'local', 'window': 3}
BACKWARDS = [{'name': name, 'backwards': True} for name in ('raster', 'column')]


@pytest.mark.parametrize('window', [WINDOW, {**WINDOW, 'pad': 'zero'}], ids=['whole', 'filled'])
@pytest.mark.parametrize('gate', [False, True])
def test_walks_along_rows(gate, window):
    """They are convolved as they lie, which is the same as gathering them first; so is what gates weigh."""
    torch.manual_seed(0)
    order = get_scan({'name': 'list', 'of': ['raster', *BACKWARDS, window]})
    mixer = MambaMixer(16, d_state=4, scan=order, direction_gate=gate, dtype=torch.float64)
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    walks = scan_order(order.to_json(), 4, 5, x)
    y = mixer(x, walks)
    assert mixer.row_walks == [True, True, False, False] and y.std() > 1e-3
    mixer.row_walks = [False] * 4
    for direction in mixer.directions:
        direction.conv1d.backwards = False
    torch.testing.assert_close(mixer(x, walks), y)


def test_directions_are_weighed():
    """Each by its own mean, with one set of weights."""
    torch.manual_seed(0)
    mixer = MambaMixer(16, scan='bidirectional', direction_gate=True, dtype=torch.float64)
    single = MambaMixer(16, scan='raster', dtype=torch.float64)
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    expected = torch.zeros(2, 20, 32, dtype=torch.float64)
    single.in_proj = mixer.in_proj
    single.out_proj = torch.nn.Identity()
    for direction, scan in zip(mixer.directions, ('raster', 'reversed'), strict=True):
        single.directions[0] = direction
        single.set_scan(get_scan(scan))
        y = single(x, scan_order(scan, 4, 5, x))
        gate = mixer.direction_gate
        weights = gate.fc2(torch.nn.functional.gelu(gate.fc1(gate.norm(y).mean(1)))).sigmoid()
        expected += y * weights[:, None] / 2
    mixer.set_scan(get_scan('bidirectional'))
    torch.testing.assert_close(mixer(x, scan_order('bidirectional', 4, 5, x)), mixer.out_proj(expected))
