"""Quantised folders: what is written loads by timm, gives what was measured, and holds nothing that runs."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from visionssm import cli
from visionssm.apps import quantize
from visionssm.apps.validate import Options, validate
from visionssm.extras import MissingExtraError
from visionssm.hub.push import plan
from visionssm.weights import quantized
from visionssm.weights.checkpoint import load_checkpoint
from visionssm.weights.published import FAMILIES

SMALL = [
    name for family in FAMILIES.values() if not family.borrowed for name in family.models if name.startswith('test_')
]
# of what is said of a rewritten model, in the order of the columns in docs/quantising.md
PARTS = 'channels rotated', r'\d norms', 'inputs of out_proj', 'centred and rotated'
IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def make(name='test_lbvim', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **kwargs).eval()


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize('name', ['test_lbvim', 'test_vmamba'])
@pytest.mark.parametrize('method', ['int8-weight', 'int8-dynamic'])
def test_folder_loads_and_is_what_was_quantised(name, method, tmp_path, capsys):
    folder = tmp_path / 'out'
    torch.manual_seed(0)
    assert cli.main(['quantize', name, '--random', '--method', method, '--output', str(folder)]) == 0
    assert f'wrote {folder}' in capsys.readouterr().out
    assert sorted(file.name for file in folder.iterdir()) == ['config.json', 'model.safetensors']
    assert json.loads((folder / 'config.json').read_text())['quantization']['method'] == method
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    with torch.no_grad():
        assert 0 < error(loaded(IMAGES), plain(IMAGES)) < 0.03
    linears = [m for m in loaded.modules() if isinstance(m, torch.nn.Linear) and m.in_features > 1]
    assert linears and all(quantized.is_quantized(m.weight) for m in linears)


@pytest.fixture
def calibration(tmp_path):
    folder = tmp_path / 'train' / 'class'
    folder.mkdir(parents=True)
    for i in range(3):
        pixels = torch.randint(256, (96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).save(folder / f'{i}.png')
    return folder.parent


@pytest.mark.parametrize(
    ('name', 'method', 'most'),
    [
        ('test_vim', 'mambaquant-w4a8', 0.4),
        ('test_plainmamba', 'mambaquant-w8a8', 0.05),
        ('test_vmamba', 'mambaquant-w8a8', 0.05),
    ],
)
def test_calibrated_folder(name, method, most, calibration, tmp_path, capsys):
    folder = tmp_path / 'out'
    torch.manual_seed(0)
    command = ['quantize', name, '--random', '--method', method, '--calibration', str(calibration), '--images', '2']
    assert cli.main([*command, '--output', str(folder)]) == 0
    said = capsys.readouterr().out
    assert 'rewritten: outputs differ by' in said and 'largest input over standard deviation' in said
    assert sorted(file.name for file in folder.iterdir()) == sorted(quantize.FILES)
    about = json.loads((folder / 'config.json').read_text())['quantization']
    assert (about['method'], about['calibration_images']) == (method, 2)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    with torch.no_grad():
        assert 0 < error(loaded(IMAGES), plain(IMAGES)) < most
    scans = [m for m in loaded.modules() if hasattr(m, 'out_proj')]
    for scan in scans:
        static, per_token = scan.in_proj.weight.act_quant_scale, scan.out_proj.weight
        assert static.numel() == 1 and per_token.act_quant_scale is None and per_token.act_quant_kwargs is not None


def test_quantised_models_are_scored(calibration, tmp_path):
    quantize.quantize('test_lbvim', 'int8-weight', tmp_path / 'out', random=True)
    (tmp_path / 'map.json').write_text('{"class": 3}')
    options = Options(str(calibration), f'local-dir:{tmp_path}/out', class_map=f'{tmp_path}/map.json', workers=0)
    done = validate(options, tmp_path / 'scores')
    assert done['images'] == 3


@pytest.mark.parametrize('name', SMALL)
def test_every_family_runs_in_inference_mode(name, calibration, tmp_path):
    done = quantize.quantize(name, 'mambaquant-w8a8', tmp_path / 'out', calibration, images=2, random=True)
    with torch.inference_mode():
        assert done.model(IMAGES).isfinite().all()
    rows = [
        line.strip('| ').split(' | ')
        for line in (Path(__file__).parents[1] / 'docs/quantising.md').read_text().splitlines()
    ]
    said = next(row[1:] for row in rows if f'`{name.removeprefix("test_")}`' in row[0].split(', '))
    assert said == ['yes' if re.search(part, ' '.join(done.prepared.notes)) else 'no' for part in PARTS]


def test_static_ranges_are_percentiles():
    layer = torch.nn.Linear(4, 3)
    x = torch.linspace(-1, 9, 1000).view(1, 250, 4)
    found = quantize.input_ranges([layer], layer, [x], 99.0)[layer]
    assert found.ndim == 3 and abs(found.low + 0.9) < 0.02 and abs(found.high - 8.9) < 0.02
    model = torch.nn.Sequential(layer)
    expected = model(x.clamp(found.low, found.high))
    quantized.check_torchao()
    quantize.quantize_linear(model, '0', 8, found)
    with torch.no_grad():
        assert error(model(x), expected) < 0.01


def test_loads_with_other_classes_and_for_features(tmp_path):
    quantize.quantize('test_lbvim', 'int8-weight', tmp_path / 'out', random=True)
    with torch.no_grad():
        assert timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True, num_classes=5)(IMAGES).shape == (2, 5)
        features = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True, features_only=True)
        assert len(features(IMAGES)) == 3


def test_four_bits_lie_two_to_a_byte(tmp_path):
    from torchao.quantization import Int8Tensor, PerRow

    weight = torch.randn(6, 8)
    x = Int8Tensor.from_hp(weight, PerRow(), scale=weight.abs().amax(1, keepdim=True) / 7)
    tensors, metadata = quantized.flatten({'layer.weight': x, 'layer.bias': torch.ones(6)})
    assert tensors['layer._weight_qdata'].shape == (6, 4)
    save_file(tensors, tmp_path / 'x.safetensors', metadata)
    read = load_checkpoint(tmp_path / 'x.safetensors')
    assert torch.equal(read['layer.weight'].qdata, x.qdata) and torch.equal(read['layer.bias'], torch.ones(6))


def test_everything_lies_in_the_fewest_bytes(tmp_path):
    quantized.check_torchao()
    from torchao.quantization import Int8Tensor, PerRow

    kernel = quantized.round_rows(torch.randn(5, 3, 4, 4) * torch.tensor([1e-6, 1, 0, 300, 1e5]).view(5, 1, 1, 1))
    plain = {'kernel': kernel, 'half': torch.randn(7).half().float(), 'full': torch.randn(7), 'count': torch.tensor(3)}
    tensors, metadata = quantized.flatten({**plain, 'x.weight': Int8Tensor.from_hp(torch.randn(2, 8), PerRow())})
    kept = {name: tensors[name].dtype for name in plain}
    assert kept == {'kernel': torch.int8, 'half': torch.float16, 'full': torch.float32, 'count': torch.int64}
    save_file(tensors, tmp_path / 'x.safetensors', metadata)
    read = load_checkpoint(tmp_path / 'x.safetensors')
    assert all(torch.equal(read[name].to(x.dtype), x) for name, x in plain.items())
    del tensors['kernel_scale']
    save_file(tensors, tmp_path / 'x.safetensors', metadata)
    with pytest.raises(ValueError, match='kernel is not in 8 bits'):
        load_checkpoint(tmp_path / 'x.safetensors')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('written') / 'out'
    quantize.quantize('test_lbvim', 'int8-dynamic', folder, random=True)
    file = folder / 'model.safetensors'
    with safe_open(file, 'pt') as opened:
        return load_file(file), opened.metadata()


NAME = 'blocks.0.mixer.in_proj.weight'


def changed(metadata, change):
    described = json.loads(metadata[NAME])
    change(described)
    return {**metadata, NAME: json.dumps(described)}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.update(_type='NVFP4Tensor'), 'does not describe an Int8Tensor'),
        (lambda x: x['_data'].update(dtype={'_type': 'torch.dtype', '_data': 'load'}), 'does not describe'),
        (lambda x: x['_data'].update(act_quant_kwargs={'_type': 'Float8MMConfig', '_data': {}}), 'does not describe'),
        (lambda x: x['_data'].update(more=1), 'does not describe'),
        (lambda x: x['_data'].update(block_size=[1, 1 << 40]), 'has block_size'),
        (lambda x: x['_tensor_data_names'].append('act_pre_scale'), 'has no act_pre_scale'),
        (lambda x: x['_data']['act_quant_kwargs'].update(_data=[]), 'the input of'),
    ],
)
def test_damaged_metadata(written, change, message, tmp_path):
    tensors, metadata = written
    save_file(tensors, tmp_path / 'x.safetensors', changed(metadata, change))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / 'x.safetensors')


def test_other_places(written, tmp_path):
    tensors, metadata = written
    save_file(tensors, tmp_path / 'x.safetensors', metadata)
    with pytest.raises(ValueError, match='not the weight of a linear layer'):
        quantized.install(make(embed_dim=64), load_checkpoint(tmp_path / 'x.safetensors'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['test_vim', '--method', 'int4'], 'allowed are int8-weight'),
        (['test_vim', '--method', 'int8-weight', '--calibration', '.'], 'takes no calibration images'),
        (['mambaout_femto', '--random', '--method', 'int8-weight'], "timm's own"),
        (['test_vim', '--method', 'int8-weight'], 'no published weights'),
        (['test_vim', '--method', 'mambaquant-w8a8'], 'needs calibration images'),
        (['test_vim', '--random', '--method', 'mambaquant-w8a8', '--calibration', 'none'], 'no folder of calibration'),
        (['test_vim', '--random', '--method', 'mambaquant-w8a8', '--calibration', '/dev/fd'], 'no images in'),
    ],
)
def test_bad_requests(arguments, message, tmp_path, capsys):
    assert cli.main(['quantize', *arguments, '--output', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(ValueError, match='holds notes.txt'):
        quantize.quantize('test_vim', 'int8-weight', tmp_path, random=True)


def test_push(calibration, tmp_path, capsys):
    quantize.quantize('test_vmamba', 'mambaquant-w8a8', tmp_path / 'out', calibration, images=1, random=True)
    assert cli.main(['push', str(tmp_path / 'out'), 'acme/small']) == 0
    card = plan(tmp_path / 'out', 'acme/small').files['README.md'].decode()
    assert '| mambaquant-w8a8 |' in card and 'pip install "visionssm[quantize]"' in card
    file = tmp_path / 'out' / 'model.safetensors'
    with safe_open(file, 'pt') as opened:
        metadata = opened.metadata()
    save_file({**load_file(file), 'more': torch.ones(2)}, file, metadata)
    assert cli.main(['push', str(tmp_path / 'out'), 'acme/small']) == 2
    assert '1 tensors differ, the first is more' in capsys.readouterr().err


def test_folders_that_timm_wrote(tmp_path):
    """Their `model_args` have the classes, too."""
    save_for_hf(timm.create_model('test_vmamba', num_classes=3), str(tmp_path / 'model'), safe_serialization=True)
    quantize.quantize(f'local-dir:{tmp_path / "model"}', 'int8-weight', tmp_path / 'out')
    assert timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).num_classes == 3


def test_quantised_twice():
    model = quantize.quantize_model(make(), 'int8-weight').model
    with pytest.raises(ValueError, match='is quantised already'):
        quantize.quantize_model(model, 'int8-weight')


def test_torchao_is_missing_or_old(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(quantized, 'version', lambda name: '0.17.0')
    command = ['quantize', 'test_vim', '--random', '--method', 'int8-weight', '--output', str(tmp_path / 'out')]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert 'needs torchao 0.18 or later, here is 0.17.0' in said and said.count('\n') == 1
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(MissingExtraError, match='quantisation needs torchao: pip install'):
        quantized.check_torchao()
