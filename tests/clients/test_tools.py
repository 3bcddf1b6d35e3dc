"""Adapters, quantisers and counters of others, unmodified. Needs the extra `clients`."""

import io
from functools import partial
from pathlib import Path

import peft
import ptflops
import pytest
import thop
import timm
import torch
import torchinfo
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torchao import quantization

from visionssm.apps.viz import class_evidence
from visionssm.layers import join_projections, split_projections
from visionssm.weights.published import model_facts

PAGE = (Path(__file__).parents[2] / 'docs/clients.md').read_text(encoding='utf-8')
SCANS = ['in_proj', 'out_proj', 'x_proj', 'dt_proj']


def create(name='test_vmamba'):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    return model, torch.randn(2, *model.pretrained_cfg['input_size'])


def check_adapters(adapted, images, expected):
    torch.testing.assert_close(adapted.eval()(images), expected)  # adapters start with zero
    adapted(images).sum().backward()
    adapters = {key: x for key, x in adapted.named_parameters() if 'lora' in key}
    assert adapters and all(x.grad is not None for x in adapters.values())


@pytest.mark.parametrize('name', ['test_vim', 'test_plainmamba'])
def test_lora(name):
    model, images = create(name)
    keys, expected = set(model.state_dict()), model(images)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=SCANS))
    check_adapters(adapted, images, expected)
    assert set(adapted.unload().state_dict()) == keys


def test_lora_of_parameters(lines):
    model, images = create()
    keys, expected = set(model.state_dict()), model(images)
    adapted = lines('Adapters', 1, model=model)['adapted']
    check_adapters(adapted, images, expected)
    assert set(adapted.unload().state_dict()) == keys


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim'])
def test_lora_merged(name, lines):
    model, images = create(name)
    keys = list(model.state_dict())
    lines('Adapters', 0, model=model, images=images)
    assert list(model.state_dict()) == keys


STACKED = [
    'test_vmamba', 'test_msvmamba', 'test_groupmamba', 'test_a2mamba', 'test_mambavision', 'test_mobilemamba',
    'test_efficientvmamba',
    'test_spatialmamba',
]  # fmt: skip


@pytest.mark.parametrize('name', STACKED)
def test_lora_of_projections_that_were_stacked(name):
    model, images = create(name)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    expected = model(images)
    names = split_projections(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=['x_proj', 'dt_proj'])).eval()
    adapted(images).sum().backward()
    adapters = {key: x for key, x in adapted.named_parameters() if 'lora' in key}
    assert len(adapters) >= 4 * len(names) and all(x.grad is not None for x in adapters.values())
    with pytest.raises(ValueError, match='x_proj is held by Linear'):
        join_projections(model)
    join_projections(adapted.merge_and_unload())
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], x) for key, x in before.items())


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim', 'test_plainmamba'])
def test_torchao_of_projections_alone(name, lines):
    model, images = create(name)
    split_projections(model)
    with torch.no_grad():
        expected = model(images)
        chosen = lines('Adapters', 2, model=model)['chosen']
        assert 0 < (model(images) - expected).abs().max() < 0.2 * expected.std()
    held = {chosen(m, key): type(m.weight) for key, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert held[False] is nn.Parameter and held[True] is not nn.Parameter


@pytest.mark.parametrize('config', ['Int8WeightOnlyConfig', 'Int8DynamicActivationInt8WeightConfig'])
def test_torchao(config):
    model, images = create()
    with torch.no_grad():
        expected = model(images)
        quantization.quantize_(model, getattr(quantization, config)())
        assert (model(images) - expected).abs().max() < 0.2 * expected.std()
    assert all(type(m.weight) is not nn.Parameter for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim'])
def test_quantize_dynamic(name, lines):
    model, images = create(name)
    with torch.no_grad():
        expected = model(images)
        found = lines('Adapters', 3, model=model)['smaller']
        assert (found(images) - expected).abs().max() < 0.5 * expected.std()
    assert not [m for m in found.modules() if isinstance(m, nn.Linear)]


OPERATORS = ['test_vmamba', 'test_vim', 'test_a2mamba', 'test_mambavision', 'test_mobilemamba', 'test_vssd']


@pytest.mark.parametrize('name', OPERATORS)
def test_counters_that_are_told(name, lines):
    model, images = create(name)
    with torch.no_grad():
        found = lines('Counters', 0, model=model, images=images[:1])
    assert {found[f'by_{counter}'] for counter in ('torch', 'fvcore', 'ptflops')} == {model_facts(name).macs}


def by_ptflops(backend, model, x):
    return ptflops.get_model_complexity_info(
        model, tuple(x.shape[1:]), backend=backend, as_strings=False, print_per_layer_stat=False, ost=io.StringIO()
    )[0]


COUNTERS = {
    'fvcore': lambda model, x: FlopCountAnalysis(model, x).unsupported_ops_warnings(False).total(),
    'ptflops, aten': partial(by_ptflops, 'aten'),
    'ptflops, pytorch': partial(by_ptflops, 'pytorch'),
    'thop': lambda model, x: thop.profile(model, (x,), verbose=False)[0],
    'torchinfo': lambda model, x: torchinfo.summary(model, input_data=x, verbose=0).total_mult_adds,
}


@pytest.mark.parametrize('name', ['vmamba_nano', 'vim_nano'])
def test_counters_that_are_not(name):
    """By the table of docs/clients.md."""
    lines = PAGE.replace('`', '').splitlines()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines if line.startswith('| ')]
    heads = next(row for row in rows if row[0] == 'model')
    (row,) = (row for row in rows if row[0] == name)
    expected = dict(zip(heads, row, strict=True))
    with torch.no_grad():
        for counter, count in COUNTERS.items():
            model = timm.create_model(name).eval()
            ratio = count(model, torch.zeros(1, 3, 224, 224)) / model_facts(name).macs
            assert ratio == pytest.approx(float(expected[counter]), abs=1e-3), counter


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim', 'test_plainmamba', 'test_mobilemamba'])
def test_grad_cam(name):
    model, images = create(name)
    maps = [class_evidence(model, images[:1], index) for index in (3, None)]
    assert all(x.shape == images.shape[-2:] and 0 <= x.min() < x.max() <= 1 for x in maps)
    with pytest.raises(ValueError, match='no classifier'):
        class_evidence(timm.create_model(name, num_classes=0), images[:1])
