"""Scans of steps of low rank: in one pass at inference on a CPU, and otherwise of a product and the scan."""

import math

import pytest
import torch

from visionssm.ops import available_backends, chunked, scan_projected, scan_tokens, use_backend

needs_kernel = pytest.mark.skipif(bool(available_backends()['cpu']), reason='no C++ kernel on this machine')


def problem(batch=2, length=9, directions=2, channels=19, states=1, rank=3, gate=True):
    torch.manual_seed(0)
    projected = torch.randn(batch, length, directions, rank + 2 * states)
    dt, B, C = projected.split([rank, states, states], -1)
    return {
        'u': torch.randn(batch, length, channels),
        'dt': dt,
        'dt_proj': torch.randn(directions, channels, rank),
        'A': -torch.rand(directions, channels, states) - 0.1,
        'B': B,
        'C': C,
        'D': torch.randn(directions, channels),
        'z': torch.randn(batch, length, channels) if gate else None,
        'delta_bias': torch.randn(directions, channels),
        'order': torch.stack([torch.randperm(length) for _ in range(directions)]).int(),
    }


def in_parts(dt, dt_proj, **others):
    return scan_tokens(delta=torch.einsum('blkr,kdr->blkd', dt, dt_proj), **others)


SIZES = [
    {},
    {'channels': 128},  # several vectors at a time
    {'channels': 100, 'rank': 1},
    {'states': 16, 'channels': 32},
    {'states': 5, 'rank': 24},
    {'batch': 1, 'length': 70, 'channels': 64},
    {'batch': 0},
    {'length': 1},
]
OPTIONS = [{}, {'merge': False}, {'merge': False, 'per_step': True}, {'local_window': 4}, {'local_window': 10**9}]


@needs_kernel
@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_values(sizes, options, monkeypatch):
    gate = not options.get('per_step') and options.get('merge', True)
    inputs = problem(**sizes, gate=gate)
    expected = in_parts(**inputs, **options)
    monkeypatch.setattr(torch, 'bmm', None)  # nobody asks for the product
    for threads in (1, 2):
        monkeypatch.setattr(torch, 'get_num_threads', lambda threads=threads: threads)
        torch.testing.assert_close(scan_projected(**inputs, **options), expected, rtol=1e-5, atol=1e-5)
    shared = {**inputs, 'dt': inputs['dt'][:, :, :1].expand_as(inputs['dt'])}
    torch.testing.assert_close(scan_projected(**shared, **options), in_parts(**shared, **options), rtol=1e-5, atol=1e-5)


def test_gradients_and_other_backends():
    inputs = {name: x if x.dtype == torch.int32 else x.detach().requires_grad_() for name, x in problem().items()}
    found = []
    for scan in (scan_projected, in_parts):
        out = scan(**inputs)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x for x in inputs.values() if x.requires_grad])))
    torch.testing.assert_close(*found)
    with torch.no_grad():
        for backend in ('torch', 'reference'):
            with use_backend(f'scan={backend}'):
                torch.testing.assert_close(scan_projected(**inputs), found[0][0])
        wide = {name: x if x.dtype == torch.int32 else x.double() for name, x in inputs.items()}
        torch.testing.assert_close(scan_projected(**wide), found[0][0].double(), rtol=1e-4, atol=1e-5)
        with torch.autocast('cpu', torch.bfloat16):
            half = {name: x.bfloat16() if name in ('u', 'dt', 'B', 'C', 'z') else x for name, x in inputs.items()}
            torch.testing.assert_close(scan_projected(**half), found[0][0].bfloat16(), rtol=0.1, atol=0.2)


@needs_kernel
def test_rates_beyond_the_kernel(monkeypatch):
    inputs = problem()
    inputs['A'][0, 0] = -math.inf
    called = []
    forward = chunked.forward
    monkeypatch.setattr(chunked, 'forward', lambda inputs: called.append(1) or forward(inputs))
    torch.testing.assert_close(scan_projected(**inputs), in_parts(**inputs))
    assert called


@needs_kernel
@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('dt_proj', lambda x: x[:, :5], r'dt_proj has shape \(2, 5, 3\)'),
        ('dt_proj', lambda x: x[..., :2], r'dt_proj has shape \(2, 19, 2\)'),
        ('dt_proj', lambda x: x[:1], r'dt_proj has shape \(1, 19, 3\)'),
        ('order', lambda x: x + 1, r'order visits tokens 1\.\.9; allowed are 0\.\.8'),
        ('B', lambda x: x[:, :4], 'B has shape'),
        ('z', lambda x: x[..., :4], 'z has shape'),
    ],
)
def test_what_does_not_fit(name, change, message):
    inputs = problem()
    with pytest.raises(ValueError, match=message):
        scan_projected(**{**inputs, name: change(inputs[name])})
