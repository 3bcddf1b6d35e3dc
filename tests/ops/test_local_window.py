"""LBMamba's local backward scan against the fixture: upstream's formula in fp64, and its gradients."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from visionssm.ops import selective_scan
from visionssm.testing import assert_close

HERE = Path(__file__).resolve().parent
CASES = json.loads((HERE / 'lbm_scan_cases.json').read_text())['cases']
BATCH, CHANNELS, STATES = 2, 3, 4


def load_golden():
    spec = importlib.util.spec_from_file_location('golden', HERE.parent / 'goldens' / 'golden.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill_tensor = load_golden().fill_tensor


def fill(length, name, *shape, scale=1):
    return scale * torch.from_numpy(fill_tensor(f'lbm_{length}_{name}', shape)).double()


def inputs(length):
    """Under the fixture's names, in its layout: tokens (B, D, L), weights (B, N, L), parameters flat."""
    tensors = {key: fill(length, f'{key}.x', BATCH, CHANNELS, length, scale=3) for key in ('u', 'dt', 'z')}
    tensors |= {key: fill(length, f'{key}.x', BATCH, STATES, length, scale=3) for key in ('B', 'C')}
    return tensors | {
        'A': -fill(length, 'A_log', CHANNELS, STATES).exp(),
        'D': fill(length, 'D', CHANNELS),
        'bias': fill(length, 'dt_proj.bias', CHANNELS),
    }


@pytest.mark.parametrize('backend', ['torch', 'cpu'])
@pytest.mark.parametrize('backwards', [False, True], ids=['forwards', 'backwards'])
@pytest.mark.parametrize('length', [int(length) for length in CASES], ids='L{}'.format)
def test_fixture(length, backwards, backend):
    with np.load(HERE / 'lbm_scan_cases.npz') as file:
        expected = {key: torch.from_numpy(file[key]) for key in file.files if key.endswith(f'_{length}')}
    leaves = {key: x.float().requires_grad_() for key, x in inputs(length).items()}
    # the sequence of the fixture, or the same stored the other way round and walked backwards
    tokens = {key: leaves[key].transpose(1, 2) for key in ('u', 'dt', 'z', 'B', 'C')}
    order = None
    if backwards:
        tokens = {key: x.flip(1) for key, x in tokens.items()}
        order = torch.arange(length).flip(0)[None]

    def scan(window):
        y = selective_scan(
            tokens['u'],
            tokens['dt'].unsqueeze(2),
            leaves['A'][None],
            tokens['B'].unsqueeze(2),
            tokens['C'].unsqueeze(2),
            leaves['D'][None],
            tokens['z'],
            leaves['bias'][None],
            True,
            order=order,
            local_window=window,
            backend=backend,
        )
        return (y.flip(1) if backwards else y).transpose(1, 2)

    assert_close('y_plain', scan(None), expected[f'y_plain_{length}'])
    y = scan(CASES[str(length)]['window'])
    assert_close('y', y, expected[f'y_{length}'])
    (y * fill(length, 'loss_weight.x', BATCH, CHANNELS, length)).sum().backward()
    for key, x in leaves.items():
        assert_close(f'gradient of {key}', x.grad, expected[f'g{key}_{length}'], grad=True)
