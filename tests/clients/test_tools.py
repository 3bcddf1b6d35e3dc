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


def create(name='test_vmamba'):
    torch.manual_seed(0)
    return timm.create_model(name).eval(), torch.randn(2, 3, 96, 96)


@pytest.mark.parametrize(
    ('name', 'targets'),
    [
        ('test_vmamba', {'target_modules': ['in_proj', 'out_proj'], 'target_parameters': ['x_proj_weight']}),
        ('test_vim', {'target_modules': ['in_proj', 'out_proj', 'x_proj', 'dt_proj']}),
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
