"""Rewritten models: the same outputs from smaller extremes."""

import copy

import pytest
import timm
import torch
from torch import nn

from visionssm.apps import rewrites
from visionssm.apps.rotations import karhunen_loeve, spreading
from visionssm.layers import join_projections, split_projections

pytestmark = pytest.mark.usefixtures('no_gradients')
ROTATED = [
    ('test_vim', {}),
    ('test_vim', {'class_token': False}),
    ('test_mambareg', {}),
    ('test_lbvim', {'norm_layer': 'layernorm'}),
    ('test_lbvim', {'global_pool': 'map', 'pool_heads': 4}),
    ('test_plainmamba', {'conv_blocks': ()}),
]
LEFT = [
    ('test_vim', {'rotary': True}, 'rotary'),
    ('test_plainmamba', {}, 'blocks [0] end with a convolution'),
    ('test_vmamba', {}, 'norms stand between its stages'),
    ('test_vmamba', {'gate': True, 'mlp_ratio': 0.0}, 'norms stand between its stages'),
]


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def outlying(name, **kwargs):
    """A model whose norms have weights of very different size, as trained ones do."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).eval().requires_grad_(False)
    for module in model.modules():
        if 'Norm' in type(module).__name__ and getattr(module, 'weight', None) is not None:
            module.weight.mul_(torch.randn(module.weight.shape).exp())
            if getattr(module, 'bias', None) is not None:
                module.bias.add_(torch.randn(module.bias.shape))
    return model, [torch.randn(2, 3, 96, 96) for _ in range(2)]


@pytest.mark.parametrize('n', [1, 2, 6, 12, 19, 24, 28, 300])
def test_spreading(n):
    matrix = spreading(n)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(matrix[0], torch.full((n,), n**-0.5, dtype=torch.float64))
    assert matrix.abs().max() * n**0.5 < (1.0001 if n in (1, 2, 12, 24) else 1.4143)


@pytest.mark.parametrize('keeps_mean', [False, True])
def test_rotation_gives_all_channels_the_same_variance(keeps_mean):
    x = torch.randn(500, 24, dtype=torch.float64) * torch.randn(24).exp() @ torch.randn(24, 24, dtype=torch.float64)
    if keeps_mean:
        x = x - x.mean(1, keepdim=True)
    covariance = x.T.cov()
    rotation = karhunen_loeve(covariance, keeps_mean)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(24, dtype=torch.float64))
    rotated = (rotation.T @ covariance @ rotation).diagonal()
    torch.testing.assert_close(rotated, covariance.diagonal().mean().expand(24))
    if keeps_mean:
        torch.testing.assert_close(rotation.sum(0), torch.ones(24, dtype=torch.float64))


@pytest.mark.parametrize(('name', 'kwargs'), ROTATED)
def test_rotated_stream(name, kwargs):
    model, batches = outlying(name, **kwargs)
    expected, before = model(batches[1]), rewrites.peaks(model, batches)
    notes = rewrites.rewrite(model, batches)
    assert notes[0].startswith(f'rewritten: {len(model.blocks) + 1} norms folded') and not any(
        'left' in note for note in notes
    )
    assert (model(batches[1]) - expected).abs().max() < 1e-5 * expected.std()
    after = rewrites.peaks(model, batches)
    names = [name for name in before if name.endswith('in_proj')]
    assert len(names) == len(model.blocks) and sum(map(after.get, names)) < 0.8 * sum(map(before.get, names))


@pytest.mark.parametrize(('name', 'kwargs', 'reason'), LEFT)
def test_smoothed_alone(name, kwargs, reason):
    model, batches = outlying(name, **kwargs)
    expected, before = model(batches[1]), rewrites.peaks(model, batches)
    notes = rewrites.rewrite(model, batches)
    assert notes[0].startswith('left as it is: the residual stream') and reason in notes[0]
    assert 'smoothed' in notes[1]
    assert (model(batches[1]) - expected).abs().max() < 1e-5 * expected.std()
    after = rewrites.peaks(model, batches)
    assert sum(after.values()) < sum(before.values())


def test_stacked_steps():
    model, batches = outlying('test_vmamba')
    assert any('left as it is: the steps' in note for note in rewrites.rewrite(copy.deepcopy(model), batches))
    expected = model(batches[1])
    split_projections(model)
    assert 'rewritten: the steps of 20 scans centred and rotated' in rewrites.rewrite(model, batches)
    assert (model(batches[1]) - expected).abs().max() < 1e-5 * expected.std()
    with pytest.raises(ValueError, match='x_proj has a bias'):
        join_projections(model)


def test_nothing_applies():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    with pytest.raises(ValueError, match='nothing that can be rotated or smoothed; take int8-dynamic'):
        rewrites.rewrite(model, [torch.randn(2, 3, 2, 2)])


def test_a_wrong_rewrite_is_noticed(monkeypatch):
    model, batches = outlying('test_lbvim')
    monkeypatch.setattr(rewrites, 'karhunen_loeve', lambda covariance, **_: 2 * spreading(len(covariance)))
    with pytest.raises(ValueError, match='standard deviations after it was rewritten'):
        rewrites.rewrite(model, batches)
