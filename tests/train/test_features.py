"""Features of images in both formats, what they are, and what is refused."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

import visionssm  # noqa: F401 (registers the models)
from visionssm import cli


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """A saved model and a folder of five images with one below."""
    root = tmp_path_factory.mktemp('features')
    torch.manual_seed(0)
    model = timm.create_model('test_vmamba').eval()
    save_for_hf(model, str(root / 'model'), model_args={}, safe_serialization=True)
    (root / 'images' / 'below').mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(5):
        place = root / 'images' / ('below' if i == 4 else '.') / f'{i}.png'
        Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(place)
    (root / 'images' / 'notes.txt').write_text('no image')
    return root, model


@pytest.mark.parametrize('workers', ['0', '2'])
def test_both_formats_hold_what_the_classifier_sees(setting, tmp_path, capsys, workers):
    root, model = setting
    found = {}
    for suffix in ('safetensors', 'npz'):
        file = tmp_path / f'out.{suffix}'
        command = ['features', str(root / 'images'), '--model', f'local-dir:{root / "model"}', '--output', str(file)]
        assert cli.main([*command, '--batch-size', '2', '--workers', workers]) == 0
        assert 'features of 5 images' in capsys.readouterr().out
        found[suffix] = file
    with safe_open(found['safetensors'], 'np') as stored, np.load(found['npz']) as arrays:
        features, names = arrays['features'], arrays['files'].tolist()
        assert np.array_equal(stored.get_tensor('features'), features)
        assert stored.metadata()['files'].count('.png') == 5 and stored.metadata()['model'].startswith('local-dir:')
    assert [name.rpartition('/')[2] for name in names] == ['0.png', '1.png', '2.png', '3.png', '4.png']
    transform = create_transform(**resolve_data_config(model=model))
    with torch.inference_mode():
        x = transform(Image.open(names[3])).unsqueeze(0)
        expected = model.forward_head(model.forward_features(x), pre_logits=True)[0]
    assert features.shape == (5, model.num_features) and np.allclose(features[3], expected, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('command', ['features', 'classify'])
@pytest.mark.parametrize('size', [[], ['--img-size', '64']])
def test_grey_models(setting, tmp_path, capsys, command, size):
    """Also with a configuration that was left at that of colours."""
    model = timm.create_model('test_vmamba', in_chans=1)
    save_for_hf(model, str(tmp_path / 'grey'), model_args={'in_chans': 1}, safe_serialization=True)
    config = json.loads((tmp_path / 'grey' / 'config.json').read_text())
    config['pretrained_cfg'].update(input_size=[3, 96, 96], mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    (tmp_path / 'grey' / 'config.json').write_text(json.dumps(config))
    output = ['--output', str(tmp_path / 'out.npz')] if command == 'features' else []
    image = str(setting[0] / 'images' / '0.png')
    assert cli.main([command, image, '--model', f'local-dir:{tmp_path / "grey"}', *output, *size]) == 0


def test_what_is_refused_is_said_first(setting, tmp_path, capsys):
    root, _ = setting
    (tmp_path / 'bad.png').write_bytes(b'nothing')
    (tmp_path / 'empty').mkdir()
    model, output = f'local-dir:{root / "model"}', str(tmp_path / 'out.npz')
    for images, file, message in (
        ('/no/image.png', output, 'no image file at /no/image.png'),
        (str(tmp_path / 'empty'), output, 'no images in'),
        (str(tmp_path / 'bad.png'), output, 'bad.png is not an image'),
        (str(root / 'images'), str(tmp_path / 'out.csv'), 'written as .safetensors or .npz'),
        (str(root / 'images'), '/dev/null/out.npz', '/dev/null is a file'),
    ):
        assert cli.main(['features', images, '--model', model, '--output', file]) == 2
        assert message in capsys.readouterr().err
    assert (
        cli.main(['features', str(root / 'images'), '--model', model, '--output', output, '--workers', '9' * 20]) == 2
    )
    assert 'allowed are 0 to 1024' in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.png', 'empty']
