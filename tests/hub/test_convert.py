"""Conversion: upstream's files to folders that load everywhere, with the same logits and a truthful card."""

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import visionssm  # noqa: F401  registers the models
from visionssm import cli
from visionssm.hub import convert as _convert
from visionssm.hub.convert import convert
from visionssm.models.dense import DenseModel
from visionssm.weights.published import find_published

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def upstream():
    """The state dict of a golden, under upstream's names."""
    spec = importlib.util.spec_from_file_location('golden', ROOT / 'tests' / 'goldens' / 'golden.py')
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    return lambda name: golden.upstream_state_dict(golden.load(name, ROOT / 'tests' / 'goldens')[0])


def state(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).state_dict()


def logits(model, side=224, channels=3):
    torch.manual_seed(1)
    with torch.inference_mode():
        return model.eval()(torch.randn(1, channels, side, side))


def load(folder, **kwargs):
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs)


@pytest.mark.parametrize(
    'golden, name, wrap',
    [
        ('vim_tiny', 'vim_tiny_patch16_224', lambda x: {'model': x, 'model_ema': {}}),
        ('plainmamba_l1', 'plainmamba_l1', lambda x: {'state_dict': {**x, 'ema_a_b': torch.ones(2)}, 'meta': {}}),
        ('lbvim_tiny', 'lbvim_tiny_patch16_224', lambda x: {'model': x}),
        ('msvmamba_nano', 'msvmamba_nano', lambda x: {'model': x}),
        ('a2mamba_nano', 'a2mamba_nano', lambda x: {'state_dict': x}),
        ('mambaout_femto', 'mambaout_femto', lambda x: x),
    ],
)
def test_upstream_file_gives_the_same_logits(golden, name, wrap, upstream, tmp_path):
    file = tmp_path / 'w.pth'
    torch.save(wrap(upstream(golden)), file)
    done = convert(file, name, tmp_path / 'out')
    assert (done.num_classes, done.extra, done.fresh) == (1000, (), ())
    assert done.left_out == (('ema_*',) if golden == 'plainmamba_l1' else ())
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={'file': str(file)})
    if name.startswith('mambaout'):  # of its own models, timm before 1.0.29 can't read the safetensors of a folder
        loaded = timm.create_model(name, checkpoint_path=str(done.folder / 'model.safetensors'))
    else:
        loaded = load(done.folder)
    assert torch.equal(logits(loaded), logits(expected))


@pytest.fixture(scope='module')
def detector(upstream, tmp_path_factory):
    """(file of a synthetic detector of VMamba, result of its conversion, the state dict)."""
    folder = tmp_path_factory.mktemp('detector')
    weights = {f'backbone.{k}': x for k, x in upstream('vmamba_tiny_s1l8').items() if not k.startswith('classifier')}
    weights |= {f'backbone.outnorm{i}.weight': torch.full((96 * 2**i,), 0.5 + i) for i in range(4)}
    weights |= {'neck.lateral_convs.0.conv.weight': torch.ones(4), 'rpn_head.rpn_conv.weight': torch.ones(4)}
    file = folder / 'mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12.pth'
    torch.save({'state_dict': weights, 'meta': {'epoch': 12}}, file)
    return file, convert(file, 'vmamba_tiny_s1l8', folder / 'out'), weights


def test_detector_becomes_a_backbone(detector):
    _, done, weights = detector
    assert done.num_classes == 0 and done.fresh == ('norm.weight', 'norm.bias')
    assert done.left_out == ('neck', 'rpn_head')
    extra = load_file(done.folder / 'backbone_extra.safetensors')
    assert set(extra) == set(done.extra) == {f'outnorm{i}.weight' for i in range(4)}
    assert torch.equal(extra['outnorm2.weight'], weights['backbone.outnorm2.weight'])
    maps = load(done.folder, features_only=True)(torch.randn(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == [96, 192, 384, 768]
    assert load(done.folder)(torch.randn(1, 3, 64, 64)).shape == (1, 768)
    assert load(done.folder, num_classes=7)(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    found = load(done.folder).state_dict()['stages.0.blocks.0.mixer.in_proj.weight']
    assert torch.equal(found, weights['backbone.layers.0.blocks.0.op.in_proj.weight'])


def test_card_of_a_detector(detector):
    file, done, _ = detector
    text = (done.folder / 'README.md').read_text()
    data = ModelCard(text).data
    assert data.license == 'mit' and data.eval_results is None  # an accuracy of the classifier is not one of this
    assert 'vmamba_tiny_s1l8.mask_rcnn_1x_coco, recognised by its name alone' in text
    assert hashlib.sha256(file.read_bytes()).hexdigest() in text
    for part in ('backbone_extra.safetensors', 'outnorm0', 'features_only=True', 'neck, rpn_head', '`norm.weight`'):
        assert part in text
    assert 'topk' not in text and '@inproceedings{liu2024vmamba' in text


def test_adapter_of_plainmamba(upstream, tmp_path):
    weights = {k: x for k, x in upstream('plainmamba_l1').items() if not k.startswith(('head', 'backbone.ln1'))}
    added = ('level_embed', 'spm.stem.0.weight', 'interactions.0.injector.gamma', 'up.weight', 'ad_norm1.weight')
    weights |= {f'backbone.{name}': torch.ones(2) for name in added}
    torch.save({'state_dict': weights}, tmp_path / 'l1_1x.pth')
    done = convert(tmp_path / 'l1_1x.pth', 'plainmamba_l1', tmp_path / 'out')
    assert set(done.extra) == set(added) and done.fresh == ('norm.weight', 'norm.bias')
    assert len(load(done.folder, features_only=True)(torch.randn(1, 3, 64, 64))) == 3


def test_our_own_detector(tmp_path):
    """What OpenMMLab saves of `visionssm.Backbone`."""
    torch.manual_seed(0)
    dense = DenseModel(timm.create_model('test_vmamba'), (0, 1, 2, 3), out_norm=True)
    weights = {f'backbone.{name}': x for name, x in dense.state_dict().items()}
    torch.save({'state_dict': {**weights, 'decode_head.conv_seg.bias': torch.ones(2)}}, tmp_path / 'iter_10.pth')
    done = convert(tmp_path / 'iter_10.pth', 'test_vmamba', tmp_path / 'out')
    assert done.fresh == ('norm.weight', 'norm.bias') and len(done.extra) == 8
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        extra = load_file(done.folder / 'backbone_extra.safetensors')
        for i, (y, expected) in enumerate(zip(load(done.folder, features_only=True).eval()(x), dense(x), strict=True)):
            y = y.permute(0, 2, 3, 1)
            y = F.layer_norm(y, y.shape[-1:], extra[f'outnorm{i}.weight'], extra[f'outnorm{i}.bias'])
            torch.testing.assert_close(y.permute(0, 3, 1, 2), expected)


def test_segmenters_of_vim_show_what_they_do(tmp_path):
    """No class token, rotary embedding, another image size."""
    weights = {k: x for k, x in state('test_vim').items() if k != 'cls_token' and not k.startswith('head')}
    weights['pos_embed'] = torch.randn(1, 64, 64)
    weights |= {'rope.freqs_cos': torch.ones(64, 64), 'fpn1.0.weight': torch.ones(2)}
    torch.save({'state_dict': {f'backbone.{name}': x for name, x in weights.items()}}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='img_size=128'):
        convert(tmp_path / 'w.pth', 'test_vim', tmp_path / 'out')
    done = convert(tmp_path / 'w.pth', 'test_vim', tmp_path / 'out', {'img_size': 128})
    assert load(done.folder).cls_token is None
    assert json.loads((done.folder / 'config.json').read_text())['model_args']['rotary'] is True
    assert set(done.extra) == {'rope.freqs_cos', 'fpn1.0.weight'}


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """(file of a trained model of ours with four classes and one channel, result of its conversion)."""
    folder = tmp_path_factory.mktemp('ours')
    torch.save({'state_dict': state('test_vim', num_classes=4, in_chans=1, img_size=64)}, folder / 'model_best.pth.tar')
    done = convert(
        folder / 'model_best.pth.tar',
        'test_vim',
        folder / 'out',
        {'img_size': 64, 'scan': 'spiral'},
        'https://example.org/mine',
        'cc-by-4.0',
    )
    return folder / 'model_best.pth.tar', done


def test_classes_and_channels_are_those_of_the_file(converted):
    file, done = converted
    assert {path.name for path in done.folder.iterdir()} == {'README.md', 'config.json', 'model.safetensors'}
    config = json.loads((done.folder / 'config.json').read_text())
    assert config['num_classes'] == 4 and config['pretrained_cfg']['input_size'] == [1, 64, 64]
    assert config['model_args']['scan'] == 'spiral' and config['model_args']['in_chans'] == 1
    model = load(done.folder)
    assert 'spiral' in model.scan
    expected = timm.create_model('test_vim', num_classes=4, in_chans=1, img_size=64, scan='spiral')
    expected.load_state_dict(state('test_vim', num_classes=4, in_chans=1, img_size=64))
    assert torch.equal(logits(model, 64, 1), logits(expected, 64, 1))
    assert load(done.folder, num_classes=9)(torch.randn(1, 1, 64, 64)).shape == (1, 9)
    assert len(load(done.folder, features_only=True)(torch.randn(1, 1, 64, 64))) == 3


def test_provenance(converted):
    file, done = converted
    config = json.loads((done.folder / 'config.json').read_text())
    said = config['provenance']
    assert said['SHA-256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert said['source'] == 'https://example.org/mine' and said['file'] == 'model_best.pth.tar'
    assert said['size'] == f'{file.stat().st_size} bytes' and 'release' not in said
    assert said['by'].startswith(f'visionssm {visionssm.__version__}') and said['converted'].endswith('UTC')
    text = (done.folder / 'README.md').read_text()
    assert all(value in text for value in said.values())
    data = ModelCard(text).data
    assert data.license == 'cc-by-4.0' and data.eval_results is None and 'reported by the authors' not in text
    assert config['pretrained_cfg']['license'] == 'cc-by-4.0' and not config['pretrained_cfg'].get('tag')


def test_release_by_name_and_by_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(_convert, '_check_loads', lambda *args: None)  # seconds
    file = tmp_path / 'vim_t_midclstok_76p1acc.pth'
    torch.save({'model': state('vim_tiny_patch16_224')}, file)
    record = find_published('vim_tiny_patch16_224')
    monkeypatch.setattr(_convert, 'tag_record', lambda config: replace(record, sha256=''))
    done = convert(file, 'vim_tiny_patch16_224', tmp_path / 'out')
    assert 'name alone' in done.release and done.license == 'contradictory'
    data = ModelCard.load(tmp_path / 'out' / 'README.md').data
    assert (data.license, data.license_name, data.model_name) == ('other', 'contradictory', 'vim_tiny_patch16_224.in1k')
    (result,) = data.eval_results
    assert result.metric_value == 76.1 and result.verified is False and 'authors' in result.metric_name

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(_convert, 'tag_record', lambda config: replace(record, sha256=digest))
    renamed = file.rename(tmp_path / 'any.pth')
    assert convert(renamed, 'vim_tiny_patch16_224', tmp_path / 'out').release.endswith('SHA-256')
    monkeypatch.undo()  # the name is right, the bytes are not
    file = renamed.rename(file)
    assert convert(file, 'vim_tiny_patch16_224', tmp_path / 'out').release == ''
    assert ModelCard.load(tmp_path / 'out' / 'README.md').data.license == 'unknown'


@pytest.mark.parametrize('part', ['', 'norm.'], ids=['whole', 'headless'])
def test_averaged_weights_where_upstream_reads_them(part, tmp_path):
    weights = {key: x for key, x in state('test_msvmambav3').items() if not part or not key.startswith(('head.', part))}
    torch.save({'model': {k: x + 1 for k, x in weights.items()}, 'model_ema': weights}, tmp_path / 'w.pth')
    folder = convert(tmp_path / 'w.pth', 'test_msvmambav3', tmp_path / 'out').folder
    found = load_file(folder / 'model.safetensors')
    assert all(torch.equal(found[key], x) for key, x in weights.items())


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp('tiny') / 'w.pth'
    torch.save(state('test_vmamba'), file)
    return file


def test_command_line(tiny, tmp_path, capsys):
    args = ['convert', str(tiny), '--model', 'test_vmamba', '--output', str(tmp_path / 'out')]
    assert cli.main([*args, '--model-kwargs', 'scan={"name": "local", "window": 4}', 'drop_rate=0.1']) == 0
    out = capsys.readouterr().out
    assert 'not a known one' in out and 'local-dir:' in out and '1000 classes' in out
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['model_args']['scan'] == {'name': 'local', 'window': 4}
    assert config['model_args']['drop_rate'] == 0.1
    assert cli.main(args) == 0  # what a conversion wrote is replaced
    assert 'scan' not in json.loads((tmp_path / 'out' / 'config.json').read_text()).get('model_args', {})
    with pytest.raises(SystemExit):
        cli.main([*args, '--model-kwargs', 'scan'])


@pytest.mark.parametrize(
    'args, message',
    [
        (['--model', 'vmamba_nothing'], 'unknown model'),
        (['--model', 'vmamba_nano'], 'of another shape'),
        (['--model', 'test_vim'], 'do not fit'),
        (['--model', 'test_vmamba', '--license', 'MIT License'], 'apache-2.0'),
        (['--model', 'test_vmamba', '--model-kwargs', 'scan=no_such_order'], 'no_such_order'),
        (['--model', 'test_vmamba', '--model-kwargs', 'foo=1'], "test_vmamba cannot be made with {'foo': 1}"),
        (['--model', 'test_vmamba', '--model-kwargs', 'd_state=NaN'], 'cannot be made with'),
    ],
)
def test_bad_input_leaves_nothing(args, message, tiny, tmp_path, capsys):
    assert cli.main(['convert', str(tiny), '--output', str(tmp_path / 'out'), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_folder_of_others_is_left_alone(tiny, tmp_path, capsys):
    (tmp_path / 'thesis.tex').write_text('x')
    assert cli.main(['convert', str(tiny), '--model', 'test_vmamba', '--output', str(tmp_path)]) == 2
    assert 'thesis.tex' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
    (tmp_path / 'trained').mkdir()
    (tmp_path / 'trained' / 'config.json').write_text('{}')
    assert cli.main(['convert', str(tiny), '--model', 'test_vmamba', '--output', str(tmp_path / 'trained')]) == 2
    assert 'holds a model that no conversion wrote' in capsys.readouterr().err
    file = tmp_path / 'thesis.tex'
    assert cli.main(['convert', str(tiny), '--model', 'test_vmamba', '--output', str(file)]) == 2


def test_failure_in_the_middle_leaves_the_old_one(tiny, tmp_path, monkeypatch):
    convert(tiny, 'test_vmamba', tmp_path / 'out')
    before = (tmp_path / 'out' / 'config.json').read_bytes()
    monkeypatch.setattr(_convert, 'folder_card', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(tiny, 'test_vmamba', tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    assert (tmp_path / 'out' / 'config.json').read_bytes() == before


def test_image_size_must_be_said(tmp_path):
    torch.save(state('test_vim', img_size=128), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='img_size=128'):
        convert(tmp_path / 'w.pth', 'test_vim', tmp_path / 'out')
    convert(tmp_path / 'w.pth', 'test_vim', tmp_path / 'out', {'img_size': 128})
    assert load(tmp_path / 'out')(torch.randn(1, 3, 128, 128)).shape == (1, 1000)
    convert(tmp_path / 'w.pth', 'test_vim', tmp_path / 'out', {'img_size': 96})  # asked for: resampled
    assert load(tmp_path / 'out')(torch.randn(1, 3, 96, 96)).shape == (1, 1000)
