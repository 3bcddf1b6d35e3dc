"""Model cards: up to date, valid for the Hub, with examples that run and pictures that hold together."""

import contextlib
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from timm.models import get_pretrained_cfg

import visionssm  # noqa: F401  registers the models
from visionssm.catalog.models import model_names
from visionssm.hub.card import folder_card
from visionssm.weights.published import FAMILIES, family_of
from visionssm.weights.records import Family, Model

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tools'))
from cards import pages  # noqa: E402
from cards.diagrams import Route, draw_blocks, draw_paths  # noqa: E402
from cards.drawings import DRAWINGS  # noqa: E402

CARDS = ROOT / 'model_cards'
HUB_LICENSES = {'apache-2.0', 'cc-by-nc-sa-4.0', 'mit', 'unknown', 'other'}


def page(key):
    return (CARDS / f'{key}.md').read_text()


def test_cards_are_up_to_date(capsys):
    import make_cards

    assert make_cards.main(['--check']) == 0, capsys.readouterr().out


def test_every_model_is_in_its_page():
    for name in model_names():
        assert f'`{name}`' in page(family_of(name).key)


@pytest.mark.parametrize('key', FAMILIES)
def test_page(key):
    family, text = FAMILIES[key], page(key)
    data = ModelCard(text).data
    assert data.library_name == 'timm' and data.pipeline_tag == 'image-classification'
    assert data.license in HUB_LICENSES and (data.license == 'other') == bool(data.license_name)
    assert data.eval_results is None  # the accuracies are the authors', of many models
    names = model_names(f'{key}*')
    assert names and DRAWINGS[key].example in names
    for name in names:
        papers = get_pretrained_cfg(name).paper_ids
        assert not papers or f'arXiv:{family.arxiv}' in papers
    for target in re.findall(r'\]\(((?!https?:)[^)]+)\)', text):
        assert (CARDS / target).is_file(), target
    assert re.search(r'@\w+\{\w+,', text) and f'https://arxiv.org/abs/{family.arxiv}' in text
    # each stands beside the authors' figure, in a column of its own
    assert '| top-1 reported by the authors | top-1 reproduced here |' in text


@pytest.mark.parametrize('key', FAMILIES)
def test_examples_run(key, monkeypatch, tmp_path):
    """With the tiny model of the family, and without its weights."""
    name = DRAWINGS[key].example
    stand_in = f'test_{name.partition("_")[0]}'
    real = timm.create_model

    def create_model(asked, pretrained=False, pretrained_cfg_overlay=None, **kwargs):
        assert asked == name
        assert pretrained or 'scan' in kwargs or not FAMILIES[key].files  # none published
        return real(stand_in, **kwargs)

    monkeypatch.setattr(timm, 'create_model', create_model)
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (120, 100)).save('photo.jpg')
    examples = re.findall(r'```python\n(.*?)```', page(key), re.S)
    assert len(examples) == (4 if DRAWINGS[key].scans else 3)
    for code in examples:
        assert 'import visionssm' in code
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code.replace('224, 224', '96, 96'), f'{key}.md', 'exec'), {})


def test_shapes_in_the_examples():
    for name in ('vim_tiny_patch16_224', 'vmamba_tiny_s1l8'):
        with torch.device('meta'):
            features = timm.create_model(name, features_only=True)
            maps = features(torch.randn(1, 3, 224, 224))
        said = re.findall(r'^# (\(1, \d+, \d+, \d+\))', page(family_of(name).key), re.M)
        assert said == [str(tuple(x.shape)) for x in maps]


def test_reproduced_is_measured_and_complete(tmp_path):
    result = {'model': 'mambaout_kobe.in1k', 'top1': 79.96, 'images': 50000, 'num_classes': 1000}
    result |= {'dtype': 'float32', 'date': '2026-11-21', 'img_size': 224, 'scan': '', 'checkpoint': 'kobe.pth'}
    (tmp_path / 'validation').mkdir()
    (tmp_path / 'validation' / 'a.json').write_text(json.dumps(result))
    partial = {**result, 'model': 'mambaout_tiny.in1k', 'images': 100}
    (tmp_path / 'validation' / 'b.json').write_text(json.dumps(partial))
    report = {'machine': {'cpu': 'some'}, 'results': [{'model': 'mambaout_kobe@224', 'images_per_second': 12.34}]}
    (tmp_path / 'models.json').write_text(json.dumps(report))
    row = {'model': 'mambaout_kobe', 'size': 224, 'batch': 128}
    row |= {'inference': {'images_per_s': 2345.6}, 'training': {'skipped': 'no memory'}}
    report = {'environment': {'device': 'a GPU', 'triton': 'not installed'}, 'scans': [], 'models': [row]}
    (tmp_path / 'gpu.json').write_text(json.dumps(report))
    (tmp_path / 'other.json').write_text('{}')
    text = pages.family_files('mambaout', tmp_path)['mambaout.md']
    assert '| 80.0 | 79.96 (at 224, float32, checkpoint kobe.pth, 2026-11-21) |' in text
    assert '| 82.7 |  |' in text
    assert '| `mambaout_kobe` | 224 | 12.3 |  | cpu some | `results/models.json` |' in text
    assert '| `mambaout_kobe` | 224 | 2346 |  | device a GPU, fp16 AMP, batch 128 | `results/gpu.json` |' in text


@pytest.mark.parametrize('key', FAMILIES)
def test_pictures(key):
    for file in CARDS.glob(f'img/{key}_*.svg'):
        assert file.stat().st_size < 60_000
        root = ElementTree.parse(file).getroot()
        width, height = float(root.get('width')), float(root.get('height'))
        boxes = []
        for rect in root.iter('{http://www.w3.org/2000/svg}rect'):
            x, y, w, h = (float(rect.get(name, 0)) for name in ('x', 'y', 'width', 'height'))
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
            if h < 40:
                boxes.append((x, y, x + w, y + h))
        for i, (x0, y0, x1, y1) in enumerate(boxes):  # no box on another
            assert not any(a < x1 and x0 < c and b < y1 and y0 < d for a, b, c, d in boxes[i + 1 :])


def test_walks_are_those_of_the_orders():
    text = draw_paths({'cross': Route('cross', 1, 4), 'windows': Route('raster', 0, 4, window=8)})
    assert text.count('stroke-linecap') + text.count('opacity="0.45"') == 15 + 2 * 7
    assert text == draw_paths({'cross': Route('cross', 1, 4), 'windows': Route('raster', 0, 4, window=8)})


def test_branches_join():
    text = draw_blocks({'Block': [('+', [], ['LayerNorm']), ('concat', ['SiLU'], ['GELU'], ['scan'])]})
    assert text.count('<circle') == 1 and '>concat<' in text
    assert [text.count(f'>{name}<') for name in ('LayerNorm', 'SiLU', 'GELU', 'scan')] == [1] * 4


def test_a_family_that_nobody_has_drawn_has_a_page(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, 'DRAWINGS', {})
    monkeypatch.setattr(pages, '_PROSE', tmp_path)
    family = Family(
        key='test_vim',
        title='Tested',
        paper='On Tests',
        arxiv='2401.00001',
        venue='arXiv 2024',
        repository='https://example.org',
        license='mit',
        models={'test_vim': Model(1, 1)},
    )
    monkeypatch.setitem(FAMILIES, 'test_vim', family)
    files = pages.family_files('test_vim', tmp_path)
    assert list(files) == ['test_vim.md', 'img/test_vim_scan.svg']
    text = files['test_vim.md']
    assert re.findall('^## (.+)', text, re.M) == ['The scan path', 'Models', 'Usage', 'Speed', 'Citation']
    assert '| `test_vim` |' in text and "timm.create_model('test_vim').eval()" in text
    assert '@misc{test_vim,\n  title={On Tests},\n  eprint={2401.00001}\n}' in text


def test_card_of_a_folder_of_an_unknown_family():
    config = {
        'architecture': 'test_resnet',
        'num_classes': 7,
        'pretrained_cfg': {'input_size': [3, 64, 64], 'notes': ['of mine']},
    }
    text = folder_card(config)
    data = ModelCard(text).data
    assert data.license == 'unknown' and data.eval_results is None and data.datasets is None
    assert '- of mine' in text and '## Citation' not in text
