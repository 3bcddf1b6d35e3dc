"""The registered backbone: what it returns, freezes, loads and refuses."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from timm import create_model
from torch import nn

from visionssm.openmmlab import Backbone


@pytest.mark.parametrize('library', ['mmengine', 'mmdet', 'mmseg'])  # mmpretrain's registry is made like the last two
def test_type_resolves_from_every_scope(library, build):
    registry = __import__(f'{library}.registry', fromlist=['MODELS']).MODELS
    assert registry.get('visionssm.Backbone') is Backbone
    assert isinstance(registry.build({'type': 'visionssm.SimplePyramid', 'in_channels': 8}), nn.Module)


def test_any_image_size(family, build):
    backbone = build(family).eval()
    maps = backbone(torch.randn(1, 3, 75, 109))
    assert [tuple(y.shape) for y in maps] == [
        (1, channels, -(-75 // step), -(-109 // step))
        for channels, step in zip(backbone.channels, backbone.reductions, strict=True)
    ]
    x = torch.randn(1, 3, 96, 96)
    expected = create_model(family).eval()
    expected.load_state_dict(backbone.model.state_dict(), strict=False)
    maps = expected.forward_intermediates(x, [0, 1, 2, 3], intermediates_only=True)
    for y, z in zip(backbone(x), maps, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)


def test_output_norms_and_fewer_levels(build):
    backbone = build(out_indices=(1, 2), out_norm=True)
    assert len(backbone.model.stages) == 3
    assert [name for name, _ in backbone.named_children()] == ['model', 'outnorm1', 'outnorm2']
    for y in backbone(torch.randn(1, 3, 64, 64)):
        assert y.mean(1).abs().max() < 1e-5


GOLDENS = Path(__file__).parents[1] / 'goldens'


@pytest.mark.parametrize('name', ['vmamba_tiny_s1l8', 'vmamba_vanilla_tiny', 'msvmamba_nano', 'groupmamba_tiny'])
def test_maps_of_the_authors_backbones(name, build, tmp_path):
    spec = importlib.util.spec_from_file_location('golden', GOLDENS / 'golden.py')
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    meta, recorded = golden.load(name, GOLDENS)
    weights = golden.upstream_state_dict(meta)
    extra = [(key, golden.fill_tensor(key, shape)) for key, shape, _ in meta.get('backbone_extra_state', [])]
    weights |= {key: torch.from_numpy(x) for key, x in extra}
    torch.save({'state_dict': {f'backbone.{key}': x for key, x in weights.items()}}, tmp_path / 'detector.pth')
    backbone = build(name, out_norm=True, init_cfg=_init(str(tmp_path / 'detector.pth'))).eval()
    backbone.init_weights()
    with torch.no_grad():
        maps = backbone(torch.from_numpy(golden.make_input(meta['inputs'][2])))
    assert [list(y.shape) for y in maps] == meta['feature_shapes']['2'][:4]
    for i, y in enumerate(maps):
        expected = recorded[f'feat_2_{i}']
        assert np.abs(golden.summarise(y) - expected).max() < 5e-4 * expected.std(), (
            np.abs(golden.summarise(y) - expected).max() / expected.std()
        )


def test_other_scan_and_drop_path(build):
    backbone = build(scan='hilbert', drop_path_rate=0.3)
    assert 'hilbert' in backbone.model.scan
    assert backbone.model.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(('name', 'first'), [('test_vmamba', 'stages.1.'), ('test_vim', 'blocks.1.')])
def test_frozen_stages(name, first, build):
    backbone = build(name, frozen_stages=1).train()
    trained = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained and all(not name.startswith(('stem', 'patch_embed', 'stages.0', 'blocks.0')) for name in trained)
    assert any(name.startswith(first) for name in trained)
    parts = backbone.model.stages if name == 'test_vmamba' else backbone.model.blocks
    assert [part.training for part in parts] == [False, True, True, True]


def test_norm_eval_holds_batch_norm(build):
    backbone = build('test_groupmamba', norm_eval=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and backbone.training and not any(m.training for m in norms)


def test_checkpointing_keeps_gradients(build):
    torch.manual_seed(0)
    plain, saving = build(), build(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for backbone in (plain, saving):
        sum(y.square().mean() for y in backbone(x)).backward()
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.fixture
def classifier(tmp_path):
    model = create_model('test_vmamba', num_classes=7)
    torch.save({'model': model.state_dict()}, tmp_path / 'classifier.pth')
    return model, str(tmp_path / 'classifier.pth')


def _init(checkpoint):
    return {'type': 'Pretrained', 'checkpoint': checkpoint}


def test_loads_a_classifier(classifier, build):
    model, file = classifier
    backbone = build(out_norm=True, init_cfg=_init(file))
    backbone.init_weights()
    for name, x in backbone.model.state_dict().items():
        assert torch.equal(x, model.state_dict()[name]), name


def test_loads_the_backbone_of_a_detector_of_ours_and_of_upstream(tmp_path, build):
    ours = build(out_norm=True)
    nn.init.uniform_(ours.outnorm2.weight)
    detector = {f'backbone.{k}': v for k, v in ours.state_dict().items()} | {'rpn_head.conv.weight': torch.zeros(1)}
    torch.save({'state_dict': detector, 'meta': {}}, tmp_path / 'detector.pth')
    other = build(out_norm=True, init_cfg=_init(str(tmp_path / 'detector.pth')))
    other.init_weights()
    for name, x in ours.state_dict().items():
        assert torch.equal(x, other.state_dict()[name]), name

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = build(out_norm=True)

    upstream = {f'backbone.{k.removeprefix("model.")}': v for k, v in ours.state_dict().items()}
    whole = Detector()
    whole.load_state_dict(upstream)  # as mmengine's runner does with `load_from`
    assert torch.equal(whole.backbone.outnorm2.weight, ours.outnorm2.weight)
    whole.load_state_dict(whole.state_dict())


def test_loads_from_a_runner_with_load_from(tmp_path, build):
    from mmengine.runner import load_checkpoint

    ours = nn.ModuleDict({'backbone': build(out_norm=True)})
    torch.save({'state_dict': ours.state_dict()}, tmp_path / 'whole.pth')
    other = nn.ModuleDict({'backbone': build(out_norm=True)})
    load_checkpoint(other, str(tmp_path / 'whole.pth'), strict=True)
    assert torch.equal(other['backbone'].outnorm0.weight, ours['backbone'].outnorm0.weight)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'name': 'vmamba_tony_s1l8'}, 'unknown model .vmamba_tony_s1l8.; closest are vmamba_tiny_s1l8'),
        ({'out_indices': (0, 4)}, 'level 4 is asked for; allowed are -4..3'),
        ({'out_indices': (2, 1)}, 'allowed are rising ones'),
        ({'dropout': 0.1}, 'test_vmamba has no argument dropout; it has in_chans, '),
        ({'frozen_stages': 5}, 'frozen_stages is 5; allowed are -1..4'),
        ({'init_cfg': {'type': 'Kaiming'}}, "allowed is dict.type='Pretrained', checkpoint="),
    ],
    ids=lambda value: '' if isinstance(value, str) else next(iter(value)),
)
def test_errors_name_what_is_allowed(args, message, build):
    with pytest.raises(ValueError, match=message):
        build(**args)


def test_weights_of_another_family_are_refused(classifier, build):
    backbone = build('test_vim', init_cfg=_init(classifier[1]))
    with pytest.raises(ValueError, match='holds weights of a model other than test_vim .* name their model'):
        backbone.init_weights()


def test_weights_that_miss_something_are_refused(classifier, tmp_path, build):
    state = classifier[0].state_dict()
    state.pop('stages.1.blocks.0.norm1.weight')
    torch.save(state, tmp_path / 'partial.pth')
    with pytest.raises(ValueError, match='1 missing: model.stages.1.blocks.0.norm1.weight'):
        build(init_cfg=_init(str(tmp_path / 'partial.pth'))).init_weights()


def test_weights_that_are_nowhere(build):
    with pytest.raises(
        ValueError, match="checkpoint 'nowhere.pth' is not a file, hf-hub:owner/name, a URL or the name of any weights"
    ):
        build(init_cfg=_init('nowhere.pth')).init_weights()
    with pytest.raises(ValueError, match='msvmamba_tiny.in1k has no weights to download; .*to download by hand: https'):
        build('test_msvmamba', init_cfg=_init('msvmamba_tiny.in1k')).init_weights()
