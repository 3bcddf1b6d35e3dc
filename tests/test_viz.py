"""What `visionssm viz` shows: the numbers against their definitions, the files, the page, bad input."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import visionssm.models  # noqa: F401 - registers the models
from visionssm.apps.viz import ScanView, activations, observe_layers, receptive_field, visualize
from visionssm.cli import main
from visionssm.ops import selective_scan
from visionssm.ops.inputs import ScanInputs
from visionssm.scans import get_scan


def scan_inputs(window=0, param_order=None):
    torch.manual_seed(0)
    B, L, K, D, N = 1, 12, 2, 5, 3
    order = torch.stack([torch.randperm(L) for _ in range(K)])
    return ScanInputs(
        torch.randn(B, L, D), torch.randn(B, L, K, D), -torch.rand(K, D, N), torch.randn(B, L, K, N),
        torch.randn(B, L, K, N), None, None, torch.randn(K, D), order, param_order, True, 0, window, False,
    )  # fmt: skip


@pytest.mark.parametrize('window', [0, 3])
@pytest.mark.parametrize('own', [False, True])
def test_attention_is_the_jacobian_of_the_scan(window, own):
    inputs = scan_inputs(window, torch.arange(12).repeat(2, 1) if own else None)
    view = ScanView('scan', inputs, torch.arange(12).view(3, 4))

    def scan(u):
        return selective_scan(
            u, *inputs[1:8], True, order=inputs.order, param_order=inputs.param_order, merge=False,
            local_window=window or None,
        )  # fmt: skip

    jacobian = torch.autograd.functional.jacobian(scan, inputs.u)[0, :, :, :, 0]  # [L, K, D, L, D]
    weights = jacobian.diagonal(dim1=2, dim2=4).abs().mean(-1)  # [L, K, L]
    for token in (0, 5, 11):
        torch.testing.assert_close(view.attention(token), weights[token].view(2, 3, 4), rtol=1e-4, atol=1e-5)


def test_maps_of_a_scan():
    inputs = scan_inputs()
    view = ScanView('scan', inputs, torch.arange(12).view(3, 4))
    dt = torch.nn.functional.softplus(inputs.delta[0] + inputs.delta_bias)  # [L, K, D]
    torch.testing.assert_close(view.steps(), dt.mean(-1).T.reshape(2, 3, 4))
    kept = torch.exp(dt[..., None] * inputs.A).mean((-1, -2))
    torch.testing.assert_close(view.decays(), kept.T.reshape(2, 3, 4))
    out = selective_scan(*inputs[:8], True, order=inputs.order, merge=False)
    torch.testing.assert_close(view.outputs(), out[0].square().mean(-1).sqrt().T.reshape(2, 3, 4))
    assert np.array_equal(view.walk(1), inputs.order[1])


@pytest.mark.parametrize(
    ('name', 'layers', 'grid', 'directions'),
    [
        ('test_vim', 4, (6, 6), 2),
        ('test_mambareg', 4, (6, 6), 2),
        ('test_localvim', 3, (6, 6), 4),
        ('test_vmamba', 5, (24, 24), 4),
        ('test_groupmamba', 5, (24, 24), 4),
        ('test_efficientvmamba', 2, (24, 24), 4),
        ('test_vssd', 0, None, 0),
    ],
)
def test_layers_of_families(name, layers, grid, directions):
    model = timm.create_model(name).eval()
    image = torch.randn(1, *model.pretrained_cfg['input_size'])
    found = observe_layers(model, image)
    assert len(found) == layers
    if layers:
        assert found[0].grid == grid
        walks = found[0].walks()
        assert len(walks) == directions and all(set(walk) <= set(range(grid[0] * grid[1])) for walk in walks)
        assert len(observe_layers(model, image, most=2)) == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_class_tokens_are_no_patches():
    model = timm.create_model('test_vim').eval()
    (view, *_) = observe_layers(model, torch.randn(1, 3, 96, 96))
    assert 18 not in view.scans[0].tokens and view.scans[0].tokens.max() == 36  # it stands in the middle
    assert np.array_equal(view.walks()[1], np.arange(36)[::-1])


def test_tokens_that_a_layer_puts_in_order():
    model = timm.create_model('test_vim', scan='hilbert').eval()
    (view, *_) = observe_layers(model, torch.randn(1, 3, 96, 96))
    assert np.array_equal(view.walks(), get_scan('hilbert', 2).table(6, 6))


def test_activations_and_receptive_field():
    model = timm.create_model('test_vmamba').eval()
    images = [torch.randn(1, 3, 96, 64) for _ in range(2)]
    assert [x.shape for x in activations(model, images[0])] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    field = receptive_field(model, images)
    assert field.shape == (96, 64) and field.max() == 1 and field.min() >= 0
    with pytest.raises(ValueError, match='no images'):
        receptive_field(model, [])


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / 'a <b>.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(file)
    return file


@pytest.mark.parametrize(
    ('name', 'layers', 'grids'),
    [
        ('test_vim', ['blocks.0.mixer', 'blocks.3.mixer'], [[6, 6], [6, 6]]),
        # a map of 24 x 24 is drawn as 14 x 14
        ('test_vmamba', ['stages.0.blocks.0.mixer', 'stages.3.blocks.0.mixer'], [[14, 14], [3, 3]]),
        ('test_vssd', [], []),
    ],
)
def test_files(name, layers, grids, picture, tmp_path):
    model = timm.create_model(name, num_classes=3).eval()
    other = timm.create_model(name, num_classes=3).eval()
    report = visualize(model, [picture, picture], tmp_path / 'out', 'a </script>', before=other, layers=2)
    scans = ['path.png', *(f'scan_{layer}.png' for layer in layers)] if layers else []
    for folder in ('a <b>', 'a <b>-2'):
        found = {file.name for file in (tmp_path / 'out' / folder).iterdir()}
        assert found - {'evidence.png'} == {'activations.png', *scans}
    assert (tmp_path / 'out' / 'receptive_field.png').stat().st_size > 1000
    page = report.read_text(encoding='utf-8')
    assert 'http' not in page and page.count('</script>') == 2
    data = json.loads(re.search(r'application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert data['title'] == 'a </script>' and [image['name'] for image in data['images']] == ['a <b>', 'a <b>-2']
    assert [layer['grid'] for layer in data['images'][0]['layers']] == grids


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['test_vim', 'nowhere.png', '--random'], 'no image file at nowhere.png'),
        (['test_vin', 'IMAGE', '--random'], 'test_vim'),
        (['test_vim', 'IMAGE', '--random', '--class', '1000'], 'class 1000 does not exist; the model has 1000'),
        (['test_vim', 'IMAGE', '--random', '--checkpoint', 'x'], 'exclude each other'),
    ],
)
def test_bad_input(arguments, message, picture, tmp_path, capsys):
    arguments = [str(picture) if argument == 'IMAGE' else argument for argument in arguments]
    assert main(['viz', *arguments, '--output', str(tmp_path / 'out')]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
