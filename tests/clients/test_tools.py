"""Adapters, quantisers and counters of others, unmodified. Needs the extra `clients`."""

import peft
import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchao import quantization

from visionssm.catalog.macs import count_macs
from visionssm.layers import join_projections, split_projections

SCANS = ['in_proj', 'out_proj', 'x_proj', 'dt_proj']


def create(name='test_vmamba'):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    return model, torch.randn(2, *model.pretrained_cfg['input_size'])


@pytest.mark.parametrize(
    ('name', 'targets'),
    [
        ('test_vmamba', {'target_modules': ['in_proj', 'out_proj'], 'target_parameters': ['x_proj_weight']}),
        ('test_vim', {'target_modules': SCANS}),
        ('test_plainmamba', {'target_modules': SCANS}),
    ],
)
def test_lora(name, targets):
    model, images = create(name)
    keys = set(model.state_dict())
    expected = model(images)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **targets))
    torch.testing.assert_close(adapted.eval()(images), expected)  # adapters start with zero
    adapted(images).sum().backward()
    adapters = {key: x for key, x in adapted.named_parameters() if 'lora' in key}
    assert adapters and all(x.grad is not None for x in adapters.values())
    assert set(adapted.unload().state_dict()) == keys


STACKED = [
    'test_vmamba', 'test_msvmamba', 'test_groupmamba', 'test_a2mamba', 'test_mambavision', 'test_mobilemamba',
    'test_efficientvmamba',
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
def test_torchao_of_projections_alone(name):
    model, images = create(name)
    split_projections(model)
    with torch.no_grad():
        expected = model(images)
        # torchao stops at the weight of a layer with one input, as the smallest dt_proj of a test model has
        chosen = [
            key
            for key, module in model.named_modules()
            if key.endswith(('x_proj', 'dt_proj')) and module.in_features > 1
        ]
        config = quantization.Int8WeightOnlyConfig()
        quantization.quantize_(model, config, filter_fn=lambda _, key: key in chosen)
        assert 0 < (model(images) - expected).abs().max() < 0.2 * expected.std()
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert (type(module.weight) is not nn.Parameter) == (key in chosen)


@pytest.mark.parametrize('config', ['Int8WeightOnlyConfig', 'Int8DynamicActivationInt8WeightConfig'])
def test_torchao(config):
    model, images = create()
    with torch.no_grad():
        expected = model(images)
        quantization.quantize_(model, getattr(quantization, config)())
        assert (model(images) - expected).abs().max() < 0.2 * expected.std()
    assert all(type(m.weight) is not nn.Parameter for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim'])
def test_quantize_dynamic(name):
    model, images = create(name)
    with torch.no_grad():
        expected = model(images)
        found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        assert (found(images) - expected).abs().max() < 0.5 * expected.std()
    assert not [m for m in found.modules() if type(m) is nn.Linear]


def test_counters():
    model, images = create()
    expected = count_macs(timm.create_model('test_vmamba', device='meta').eval(), (3, 96, 96))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    assert counter.get_total_flops() == 2 * expected
    assert 0 < FlopCountAnalysis(model, images[:1]).unsupported_ops_warnings(False).total() <= 1.02 * expected
