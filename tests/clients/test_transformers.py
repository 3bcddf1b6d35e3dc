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
    torch.manual_seed(0)
    model = timm.create_model('test_vmamba', num_classes=2).eval()
    if request.param == 'trained':
        save_model(model, root / 'model', ['cat', 'dog'], {}, 'made for a test')
    else:
        torch.save({'model': model.state_dict()}, root / 'weights.pth')
        convert(root / 'weights.pth', 'test_vmamba', root / 'model', license='mit')
    return root / 'model', model


def test_classifier(setting):
    folder, model = setting
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(loaded(images).logits, model(images))
    assert torch.equal(timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(images), model(images))


def test_pipeline_and_processor(setting):
    folder, model = setting
    image = Image.effect_noise((120, 100), 80).convert('RGB')
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors='pt')['pixel_values']
    with torch.inference_mode():
        expected = model(pixels).softmax(1)[0].sort(descending=True).values
    found = transformers.pipeline('image-classification', str(folder))(image)
    assert [entry['score'] for entry in found] == pytest.approx(expected.tolist(), abs=1e-5)
    if folder.parent.name.startswith('trained'):
        assert {entry['label'] for entry in found} == {'cat', 'dog'}


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


def test_backbone(setting):
    folder, model = setting
    name, images = f'local-dir:{folder}', torch.rand(1, 3, 96, 96)
    config = transformers.TimmBackboneConfig(backbone=name, out_indices=(1, 3))
    with torch.inference_mode():
        expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
        for backbone in (
            transformers.TimmBackbone.from_pretrained(name, out_indices=(1, 3)),
            transformers.AutoBackbone.from_config(config, pretrained=True),
        ):
            maps = backbone.eval()(images).feature_maps
            assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim'])
def test_what_timm_itself_saves(name, tmp_path):
    """It notes the classes twice; with other arguments in their place it loads, and transformers writes it sound."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    save_for_hf(model, str(tmp_path / 'saved'), safe_serialization=True)
    loader = transformers.AutoModelForImageClassification
    loaded = loader.from_pretrained(tmp_path / 'saved', model_args={}).eval()
    loaded.save_pretrained(tmp_path / 'again')
    with torch.inference_mode():
        x = torch.rand(1, 3, 96, 96)
        expected = model(x)
        assert torch.equal(loaded(x).logits, expected)
        assert torch.equal(loader.from_pretrained(tmp_path / 'again').eval()(x).logits, expected)
        for folder in ('saved', 'again'):
            in_timm = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True)
            assert torch.equal(in_timm.eval()(x), expected)
    pipeline = transformers.pipeline('image-classification', str(tmp_path / 'saved'), model_kwargs={'model_args': {}})
    assert len(pipeline(Image.effect_noise((96, 96), 80).convert('RGB'))) == 3
