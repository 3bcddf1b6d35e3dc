"""The scan in plain operators against the definition."""

import pytest
import torch

from visionssm.ops import export, selective_scan_ref


def inputs(length, directions, channels, d_state, batch=2):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    shape = (batch, length, directions)
    A = -torch.exp(draw(directions, channels, d_state))
    order = torch.stack([torch.randperm(length, generator=g) for _ in range(directions)])
    tensors = (
        draw(batch, length, channels), draw(*shape, channels), A, draw(*shape, d_state), draw(*shape, d_state),
        draw(directions, channels), draw(batch, length, channels), draw(directions, channels),
    )  # fmt: skip
    return tensors, order


@pytest.mark.parametrize(('length', 'd_state'), [(1, 1), (7, 4), (16, 1), (197, 4), (400, 1)])
@pytest.mark.parametrize('mode', [0, 1, 2])
@pytest.mark.parametrize('window', [0, 4, 5])
def test_scan_is_the_definition(length, d_state, mode, window):
    tensors, order = inputs(length, 2, 6, d_state)
    expected, state = selective_scan_ref(
        *tensors, True, order=order, merge=mode == 0, per_step=mode == 2, local_window=window or None,
        return_last_state=True,
    )  # fmt: skip
    out, last = export.scan(*tensors, order, None, True, mode, window, True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('length', [5, 64, 300])
def test_traced_scan_takes_other_lengths(length):
    (u, delta, A, B, C, *_), _ = inputs(40, 2, 6, 3)

    def scan(u, delta, B, C):
        return export.scan(u, delta, A, B, C, None, None, None, None, None, True, 0, 0, False)[0]

    traced = torch.jit.trace(scan, (u, delta, B, C))
    (u, delta, _, B, C, *_), _ = inputs(length, 2, 6, 3, batch=3)
    torch.testing.assert_close(traced(u, delta, B, C), selective_scan_ref(u, delta, A, B, C, delta_softplus=True))


def test_softplus():
    x = torch.linspace(-80, 80, 10001, dtype=torch.float64)
    expected = torch.nn.functional.softplus(x, threshold=1000)
    assert ((export.softplus(x.float()).double() - expected) / expected).abs().max() < 1e-5
    torch.testing.assert_close(export.softplus(x), expected, rtol=3e-7, atol=0)
