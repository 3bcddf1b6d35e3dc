"""MambaOut is timm's own: that it stays so, and that the original repository's checkpoints load into it."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from timm.models import is_model_pretrained, model_entrypoint

import visionssm  # noqa: F401  registers the models

GOLDENS = Path(__file__).resolve().parents[1] / 'goldens'


@pytest.fixture(scope='module')
def weights():
    """The fixture's checkpoint, under the original names."""
    spec = importlib.util.spec_from_file_location('golden', GOLDENS / 'golden.py')
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    return golden.upstream_state_dict(golden.load('mambaout_femto', GOLDENS)[0])


def test_timm_keeps_its_models():
    names = timm.list_models('mambaout*')
    assert {f'mambaout_{size}' for size in ('femto', 'kobe', 'tiny', 'small', 'base')} <= set(names)
    assert all(model_entrypoint(name).__module__ == 'timm.models.mambaout' for name in [*names, 'test_mambaout'])
    assert set(timm.list_models(module='mambaout')) == {*names, 'test_mambaout'}
    assert 'mambaout_femto.in1k' in timm.list_pretrained('mambaout*')
    assert is_model_pretrained('mambaout_femto')


@pytest.mark.parametrize('container', [None, 'model', 'state_dict'])
def test_original_checkpoint(container, weights, tmp_path):
    file = tmp_path / 'mambaout_femto.pth'
    torch.save({container: weights} if container else weights, file)
    model = timm.create_model('mambaout_femto', pretrained=True, pretrained_cfg_overlay={'file': str(file)}).eval()
    state = model.state_dict()
    assert len(state) == len(weights)
    assert torch.equal(state['stem.conv1.weight'], weights['downsample_layers.0.conv1.weight'])
    assert torch.equal(state['stages.2.downsample.conv.weight'], weights['downsample_layers.2.conv.weight'])
    assert torch.equal(state['head.norm.weight'], weights['norm.weight'])
    assert torch.equal(state['head.pre_logits.norm.weight'], weights['head.norm.weight'])


def test_incomplete_checkpoint(weights, tmp_path):
    file = tmp_path / 'mambaout_femto.pth'
    torch.save({name: x for name, x in weights.items() if name != 'norm.weight'}, file)
    with pytest.raises(RuntimeError, match='Missing key.*head.norm.weight'):
        timm.create_model('mambaout_femto', pretrained=True, pretrained_cfg_overlay={'file': str(file)})


def test_features():
    """timm's list of maps is NHWC for this family; its getter gives NCHW maps, as our families do."""
    x = torch.randn(1, 3, 96, 128)
    model = timm.create_model('test_mambaout', features_only=True, feature_cls='getter').eval()
    info = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    assert [tuple(y.shape) for y in model(x)] == [(1, dim, 96 // factor, 128 // factor) for dim, factor in info]
