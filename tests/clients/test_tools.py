"""Adapters, quantisers and counters of others, unmodified. Needs the extra `clients`."""

import io
from functools import partial

import peft
import ptflops
import pytest
import thop
import timm
import torch
import torchinfo
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchao import quantization

from visionssm.apps.viz import class_evidence
from visionssm.catalog.macs import count_macs
from visionssm.layers import join_projections, split_projections
from visionssm.ops.flops import trace_handles

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


SIZE = (3, 224, 224)


def by_ptflops(backend, model):
    return ptflops.get_model_complexity_info(
        model, SIZE, as_strings=False, print_per_layer_stat=False, backend=backend, ost=io.StringIO()
    )[0]


def by_torchinfo(model):
    return torchinfo.summary(model, input_size=(1, *SIZE), device='meta', verbose=0).total_mult_adds


# of vmamba_tiny_s1l8, over those of `visionssm list`, as docs/clients.md has them; ptflops counts sketches twice
COUNTERS = {
    'thop': (
        0.948,
        'meta',
        lambda model: thop.profile(model, (torch.empty(1, *SIZE, device='meta'),), verbose=False)[0],
    ),
    'ptflops, aten': (0.989, 'meta', partial(by_ptflops, 'aten')),
    'ptflops, pytorch': (0.970, 'cpu', partial(by_ptflops, 'pytorch')),
    'torchinfo': (0.164, 'meta', by_torchinfo),
}


@pytest.mark.parametrize('counter', COUNTERS)
def test_counters(counter):
    ratio, device, count = COUNTERS[counter]
    expected = count_macs(timm.create_model('vmamba_tiny_s1l8', device='meta').eval(), SIZE)
    model = timm.create_model('vmamba_tiny_s1l8', device=device).eval()
    with torch.no_grad():
        assert count(model) / expected == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim', 'test_a2mamba'])
def test_fvcore(name):
    """It counts norms, and papers do not; all else agrees."""
    model, images = create(name)
    expected = count_macs(timm.create_model(name, device='meta').eval(), images.shape[1:])
    analysis = FlopCountAnalysis(model, images[:1]).set_op_handle(**trace_handles())
    with torch.no_grad():
        products = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    for norm in ('layer_norm', 'batch_norm'):
        products.pop(norm, None)
    assert products.total() == pytest.approx(expected, rel=1e-3)


def test_flop_counter_mode():
    model, images = create()
    expected = count_macs(timm.create_model('test_vmamba', device='meta').eval(), (3, 96, 96))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim', 'test_plainmamba', 'test_mobilemamba'])
def test_grad_cam(name):
    model, images = create(name)
    maps = [class_evidence(model, images[:1], index) for index in (3, None)]
    assert all(x.shape == images.shape[-2:] and 0 <= x.min() < x.max() <= 1 for x in maps)
    with pytest.raises(ValueError, match='no classifier'):
        class_evidence(timm.create_model(name, num_classes=0), images[:1])
