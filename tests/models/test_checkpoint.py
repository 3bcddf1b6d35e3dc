"""Files from anywhere: what loads, what is refused, and what the refusal says."""

import argparse
import collections
import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import visionssm  # noqa: F401  registers the models
from visionssm.models.vim import resample_pos_embed
from visionssm.weights.checkpoint import load_checkpoint
from visionssm.weights.download import WeightsError

NAME = 'test_vmamba'


def model(name=NAME, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def load(file, name=NAME, **kwargs):
    torch.manual_seed(1)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={'file': str(file)}, **kwargs)


def assert_same(loaded, expected):
    for key, x in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], x), key


@pytest.fixture
def foreign(monkeypatch):
    """A class of a package that is not installed when the file is read."""

    def make(path, base=dict):
        module, name = path.rsplit('.', 1)
        cls = type(name, (base,), {'__module__': module})
        parts = module.split('.')
        for i in range(len(parts)):
            key = '.'.join(parts[: i + 1])
            if key not in sys.modules:
                monkeypatch.setitem(sys.modules, key, types.ModuleType(key))
        monkeypatch.setattr(sys.modules[module], name, cls, raising=False)
        return cls

    return make


@pytest.mark.parametrize('container', ['model', 'state_dict', 'model_ema', 'state_dict_ema', 'net', None])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.'])
def test_containers(container, prefix, tmp_path):
    expected = model()
    state = {prefix + key: x for key, x in expected.state_dict().items()}
    torch.save({container: state, 'epoch': 3, 'lr': 0.1} if container else state, tmp_path / 'w.pth')
    assert_same(load(tmp_path / 'w.pth'), expected)


def test_model_before_average(tmp_path):
    expected = model().state_dict()
    average = {key: x + 1 for key, x in expected.items()}
    torch.save({'model_ema': average, 'model': expected, 'state_dict_ema': average}, tmp_path / 'w.pth')
    found = load_checkpoint(tmp_path / 'w.pth')
    assert all(torch.equal(found[key], x) for key, x in expected.items())


def test_container_that_is_asked_for(tmp_path):
    torch.save({'model': model().state_dict(), 'epoch': 3}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r"w\.pth has no weights under 'model_ema'; it holds model, epoch"):
        load_checkpoint(tmp_path / 'w.pth', 'model_ema')
    assert len(load_checkpoint(tmp_path / 'w.pth', 'model')) == len(load_checkpoint(tmp_path / 'w.pth', prefer='x'))


def test_safetensors(tmp_path):
    expected = model()
    save_file(expected.state_dict(), tmp_path / 'w.safetensors')
    assert_same(load(tmp_path / 'w.safetensors'), expected)


@pytest.mark.parametrize('legacy', [False, True])
def test_training_leftovers(legacy, tmp_path, foreign):
    """A command line, a yacs configuration, numpy scalars and mmengine's history beside the weights."""
    expected = model()
    history = foreign('mmengine.logging.history_buffer.HistoryBuffer', object)()
    history.values = np.arange(3.0)
    config = foreign('yacs.config.CfgNode')(NAME='vssm', MODEL=1)
    config.__dict__['__immutable__'] = True
    content = {
        'model': expected.state_dict(),
        'args': argparse.Namespace(lr=0.1, resume=''),
        'config': config,
        'max_accuracy': np.float64(82.6),
        'message_hub': {'loss': history},
        'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]},
        'order': collections.OrderedDict(a=1),
    }
    file = tmp_path / 'w.pth'
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    sys.modules.pop('yacs.config')
    assert_same(load(file), expected)


def test_downloads(tmp_path, foreign, monkeypatch):
    """What timm fetches itself goes through the same filter; neither route runs code."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    expected = model()
    config = foreign('yacs.config.CfgNode')(NAME='vssm')
    torch.save({'model': expected.state_dict(), 'config': config}, tmp_path / 'good.pth')
    torch.save({'model': expected.state_dict(), 'extra': Bomb(tmp_path / 'ran')}, tmp_path / 'bad.pth')
    sys.modules.pop('yacs.config')

    def fetch(name):
        overlay = {'url': (tmp_path / name).as_uri(), 'hf_hub_id': None}
        return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)

    assert_same(fetch('good.pth'), expected)
    with pytest.raises(WeightsError, match=r'asks to run .*system.*removed'):
        fetch('bad.pth')
    assert not (tmp_path / 'ran').exists()


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


class Call:
    """Calls `function(*args)` when it is unpickled by whoever lets it."""

    def __init__(self, function, *args, state=None):
        self.result = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.result


def write(mark):
    return f"open({str(mark)!r}, 'w')"


CRAFTED = {
    'system': lambda mark: Call(os.system, f'touch {mark}'),
    'eval': lambda mark: Call(eval, write(mark)),
    'process': lambda mark: Call(subprocess.Popen, ['touch', str(mark)]),
    'import': lambda mark: Call(importlib.import_module, 'this'),
    'nested': lambda mark: Call(pickle.loads, pickle.dumps(Bomb(mark))),
    # torch's own way to read a pickle inside a pickle
    'storage': lambda mark: Call(torch.storage._load_from_bytes, pickle.dumps(Bomb(mark))),
    # a name that is known, used for what it is not
    'getattr': lambda mark: Call(getattr, Bomb(mark), 'x'),
    'state': lambda mark: Call(argparse.Namespace, state={'x': Bomb(mark)}),
    'argument': lambda mark: Call(collections.OrderedDict, [('x', Bomb(mark))]),
    'array': lambda mark: np.array([Bomb(mark)], dtype=object),
}


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('crafted', CRAFTED)
def test_code_never_runs(crafted, legacy, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    mark = tmp_path / 'ran'
    content = {'model': {'a': torch.ones(1)}, 'extra': CRAFTED[crafted](mark)}
    torch.save(content, tmp_path / 'w.pth', _use_new_zipfile_serialization=not legacy)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r'w\.pth cannot be read as a checkpoint: it asks to run '):
        load_checkpoint(tmp_path / 'w.pth')
    assert not mark.exists() and 'this' not in set(sys.modules) - before


def test_plain_pickle(tmp_path):
    mark = tmp_path / 'ran'
    (tmp_path / 'w.pth').write_bytes(pickle.dumps({'model': model().state_dict(), 'extra': Bomb(mark)}))
    with pytest.raises(ValueError, match=r'w\.pth'):
        load(tmp_path / 'w.pth')
    assert not mark.exists()


def test_refusal_names_the_function(tmp_path):
    torch.save({'model': {}, 'extra': Bomb(tmp_path / 'ran')}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'asks to run .*system'):
        load_checkpoint(tmp_path / 'w.pth')


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('empty.pth', b''),
        ('text.pth', b'<html>404: Not Found</html>'),
        ('noise.pth', bytes(range(256)) * 40),
        ('zip.pth', b'PK\x03\x04' + b'\0' * 100),
        ('short.safetensors', b'\x10\0\0\0\0\0\0\0{"a":'),
        ('text.safetensors', b'hello'),
        ('pointer.pth', b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n'),
    ],
)
def test_not_a_checkpoint(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        load(tmp_path / name)
    assert '\n' not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize('share', [0.01, 0.5, 0.99])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_truncated(share, suffix, tmp_path):
    whole, cut = tmp_path / f'whole.{suffix}', tmp_path / f'cut.{suffix}'
    state = model().state_dict()
    save_file(state, whole) if suffix == 'safetensors' else torch.save(state, whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match='cut'):
        load(cut)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load(tmp_path / 'nowhere.pth')


@pytest.mark.parametrize('content', [[1, 2], {}, {'model': {}}, {'epoch': 3}, {'model': {'a': torch.ones(1), 'b': 2}}])
def test_no_weights(content, tmp_path):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match=r'w\.pth'):
        load(tmp_path / 'w.pth')


def test_misfits_are_grouped(tmp_path):
    state = model().state_dict()
    del state['norm.weight']
    state['extra.weight'] = torch.ones(1)
    state['head.fc.bias'] = torch.ones(3)
    state['outnorm0.weight'] = torch.ones(16)
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(ValueError) as caught:
        load(tmp_path / 'w.pth')
    message = str(caught.value)
    for part in ('1 missing: norm.weight', '2 unexpected: extra.weight', 'head.fc.bias (3,) for (1000,)', 'detection'):
        assert part in message


def test_scan_of_other_directions(tmp_path):
    torch.save(model().state_dict(), tmp_path / 'w.pth')
    assert load(tmp_path / 'w.pth', scan='hilbert')(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match='one set per direction'):
        load(tmp_path / 'w.pth', scan='raster')


# upstream names


def golden_state(name):
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location('verify_goldens', root / 'tools' / 'verify_goldens.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    meta, _ = tool.golden.load(name, tool.GOLDENS)
    return tool.golden.upstream_state_dict(meta)


def save_and_load(state, tmp_path, name, **kwargs):
    torch.save({'model': state}, tmp_path / 'w.pth')
    return load(tmp_path / 'w.pth', name, **kwargs)


def test_vmamba_single_file_names(tmp_path):
    """The release of March 2025: flat projections, 1x1 convolutions."""
    state = golden_state('vmamba_tiny_s1l8')
    expected = save_and_load(state, tmp_path, 'vmamba_tiny_s1l8')
    other = {}
    for key, x in state.items():
        key = key.replace('x_proj_weight', 'x_proj.weight').replace('dt_projs_weight', 'dt_projs.weight')
        if key.endswith(('op.x_proj.weight', 'op.dt_projs.weight')):
            x = x.flatten(0, 1)
        elif key.endswith(('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight')):
            x = x[..., None, None]
        other[key] = x
    assert_same(save_and_load(other, tmp_path, 'vmamba_tiny_s1l8'), expected)


def test_vmamba_first_release_names(tmp_path):
    state = golden_state('vmamba_vanilla_tiny')
    expected = save_and_load(state, tmp_path, 'vmamba_vanilla_tiny')
    replacements = (
        ('patch_embed.0.', 'patch_embed.proj.'),
        ('patch_embed.2.', 'patch_embed.norm.'),
        ('.op.', '.self_attention.'),
        ('classifier.', ''),
    )
    old, merged = {}, {}
    for key, x in state.items():
        new = key
        for a, b in replacements:
            new = new.replace(a, b)
        parts = new.split('.')
        if len(parts) == 6 and parts[4] == 'norm':
            parts[4] = 'ln_1'
        old['.'.join(parts)] = x
        merged[key.replace('downsample.norm', 'downsample.1').replace('downsample.reduction', 'downsample.2')] = x
    assert any('.ln_1.' in key for key in old) and 'head.weight' in old and 'norm.weight' in old
    assert_same(save_and_load(old, tmp_path, 'vmamba_vanilla_tiny'), expected)
    assert_same(save_and_load(merged, tmp_path, 'vmamba_vanilla_tiny'), expected)


def test_vmamba_backbone(tmp_path):
    """A detection backbone has no classifier: it loads for features, and its outnorms are named, not dropped."""
    state = {f'backbone.{k}': x for k, x in golden_state('vmamba_tiny_s1l8').items() if not k.startswith('classifier')}
    features = save_and_load(state, tmp_path, 'vmamba_tiny_s1l8', features_only=True)
    assert len(features(torch.randn(1, 3, 64, 64))) == 4
    with pytest.raises(ValueError, match=r'4 missing: norm\.weight'):
        save_and_load(state, tmp_path, 'vmamba_tiny_s1l8')
    state['backbone.outnorm0.weight'] = torch.ones(96)
    with pytest.raises(ValueError, match='outnorm0'):
        save_and_load(state, tmp_path, 'vmamba_tiny_s1l8', features_only=True)


def test_vmamba_wrong_variant(tmp_path):
    """s1l8 and s2l5 are mixed up often."""
    with pytest.raises(ValueError, match='of another shape: .*in_proj'):
        save_and_load(golden_state('vmamba_tiny_s2l5'), tmp_path, 'vmamba_tiny_s1l8')


def test_vim_other_grid(tmp_path):
    state = golden_state('vim_tiny')
    at = 14 * 14 // 2
    larger = save_and_load(state, tmp_path, 'vim_tiny_patch16_224', img_size=(256, 320))
    assert torch.equal(larger.pos_embed[:, 16 * 20 // 2], state['pos_embed'][:, at])
    rows = torch.cat([state['pos_embed'][:, :at], state['pos_embed'][:, at + 1 :]], 1)
    grid = rows.reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (16, 20), mode='bicubic', align_corners=False)
    kept = [i for i in range(16 * 20 + 1) if i != 16 * 20 // 2]
    torch.testing.assert_close(larger.pos_embed[:, kept], expected.flatten(2).transpose(1, 2))
    stride = save_and_load(state, tmp_path, 'vim_tiny_patch16_stride8_224')
    assert torch.equal(stride.pos_embed[:, 729 // 2], state['pos_embed'][:, at])


def test_resampling_keeps_what_fits():
    pos_embed = torch.randn(1, 15 * 9 + 1, 4)
    assert torch.equal(resample_pos_embed(pos_embed, [15, 9], [15, 9]), pos_embed)
