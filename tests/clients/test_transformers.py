"""Folders that `train`, `demo` and `convert` write, as transformers loads them. Needs the extra `clients`."""

import pytest
import timm
import torch
import transformers
from PIL import Image

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


def test_backbone(setting):
    folder, model = setting
    config = transformers.TimmBackboneConfig(backbone=f'local-dir:{folder}', out_indices=(1, 3))
    backbone = transformers.AutoBackbone.from_config(config, pretrained=True).eval()
    images = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        maps = backbone(images).feature_maps
        expected = model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
