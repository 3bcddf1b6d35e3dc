"""Folders that `train`, `demo` and `convert` write, as transformers loads them. Needs the extra `clients`."""

import subprocess
import sys

import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models import save_for_hf

from visionssm.hub.convert import convert
from visionssm.train.model import save_model


@pytest.fixture(scope='module', params=['trained', 'converted'])
def setting(request, tmp_path_factory):
    """(folder, the model in it)."""
    root = tmp_path_factory.mktemp(request.param)
    (root / 'runs').mkdir()
    torch.manual_seed(0)
    model = timm.create_model('test_vmamba', num_classes=2).eval()
    if request.param == 'trained':
        save_model(model, root / 'runs/demo', ['cat', 'dog'], {}, 'made for a test')
    else:
        torch.save({'model': model.state_dict()}, root / 'weights.pth')
        convert(root / 'weights.pth', 'test_vmamba', root / 'runs/demo', license='mit')
    return root / 'runs/demo', model


def test_classifier(setting, lines, monkeypatch):
    folder, model = setting
    monkeypatch.chdir(folder.parents[1])
    found = lines('transformers', 0)
    images, image = torch.rand(2, 3, 96, 96), Image.effect_noise((120, 100), 80).convert('RGB')
    with torch.inference_mode():
        assert torch.equal(found['model'].eval()(images).logits, model(images))
        in_timm = timm.create_model('local-dir:runs/demo', pretrained=True).eval()
        assert torch.equal(in_timm(images), model(images))
        pixels = found['processor'](image, return_tensors='pt')['pixel_values']
        expected = model(pixels).softmax(1)[0].sort(descending=True).values
    classes = found['classify'](image)
    assert [entry['score'] for entry in classes] == pytest.approx(expected.tolist(), abs=1e-5)
    if 'trained' in str(folder):
        assert {entry['label'] for entry in classes} == {'cat', 'dog'}


SCRIPT = """
import sys
from PIL import Image
from transformers import pipeline
print(len(pipeline('image-classification', sys.argv[1])(Image.new('RGB', (96, 96)))), 'classes')
"""


@pytest.mark.parametrize('setting', ['trained'], indirect=True)
def test_a_program_that_does_not_know_us(setting, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    command = [sys.executable, '-m', 'visionssm', 'run', str(tmp_path / 'script.py'), str(setting[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == '2 classes', done.stderr[-2000:]


def test_backbone(setting, lines, monkeypatch):
    folder, model = setting
    monkeypatch.chdir(folder.parents[1])
    found, images = lines('transformers', 1), torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
        for backbone in (found['backbone'], found['same']):
            maps = backbone.eval()(images).feature_maps
            assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim'])
def test_what_timm_itself_saves(name, lines, tmp_path, monkeypatch):
    """It notes the classes twice; with other arguments in their place it loads, and transformers writes it sound."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    model = timm.create_model(name, num_classes=3).eval()
    save_for_hf(model, 'saved', safe_serialization=True)
    found = lines('transformers', 2)
    found['model'].save_pretrained('again')
    again = transformers.AutoModelForImageClassification.from_pretrained('again')
    with torch.inference_mode():
        x = torch.rand(1, 3, 96, 96)
        expected = model(x)
        assert torch.equal(found['model'].eval()(x).logits, expected)
        assert torch.equal(again.eval()(x).logits, expected)
        for folder in ('saved', 'again'):
            in_timm = timm.create_model(f'local-dir:{folder}', pretrained=True)
            assert torch.equal(in_timm.eval()(x), expected)
    assert len(found['classify'](Image.effect_noise((96, 96), 80).convert('RGB'))) == 3
