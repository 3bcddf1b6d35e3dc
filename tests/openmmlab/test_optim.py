"""Parameter groups by layer."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from visionssm.openmmlab import LayerDecayConstructor

OPTIMIZER = {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.5}


def groups(model, **paramwise):
    return LayerDecayConstructor({'optimizer': OPTIMIZER}, paramwise).groups(model)


def test_every_family(family, build):
    model = nn.ModuleDict({'backbone': build(family, out_norm=True), 'head': nn.Conv2d(3, 3, 1)})
    found = {name: group for group in groups(model, decay_rate=0.5) for name in group['names']}
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert found['head.weight']['lr'] == found['backbone.outnorm3.weight']['lr'] == 1
    assert (found['head.weight']['weight_decay'], found['head.bias']['weight_decay']) == (0.5, 0)
    inner = {name.removeprefix('backbone.model.'): group for name, group in found.items() if '.model.' in name}
    for parameter, group in inner.items():
        kind = parameter.rpartition('.')[2]
        if kind in ('A_log', 'D', 'pos_embed', 'cls_token', 'bias') or 'norm' in parameter:
            assert group['weight_decay'] == 0, parameter
    rates = [group['lr'] for name, group in inner.items() if name.startswith(('stages.3.blocks', 'blocks.3'))]
    assert max(rates) == 0.5
    stem = [group['lr'] for name, group in inner.items() if name.startswith(('stem', 'patch_embed', 'pos_embed'))]
    assert set(stem) == {min(group['lr'] for group in inner.values())} and stem[0] < min(rates)


def test_custom_keys(build):
    """The longest that fits; layers still count, and decay is exempt as before unless a key says otherwise."""
    model = nn.ModuleDict({'backbone': build(), 'head': nn.Conv2d(3, 3, 1)})
    keys = {
        'head': {'lr_mult': 10.0},
        'stages.3': {'lr_mult': 0.5, 'eps': 1e-3},
        'stages.3.blocks.0.norm1': {'decay_mult': 2.0},
    }
    found = {name: group for group in groups(model, decay_rate=0.5, custom_keys=keys) for name in group['names']}
    plain = {name: group for group in groups(model, decay_rate=0.5) for name in group['names']}
    assert (found['head.weight']['lr'], found['head.weight']['weight_decay']) == (10.0, 0.5)
    assert (found['head.bias']['lr'], found['head.bias']['weight_decay']) == (10.0, 0.0)
    for name, group in found.items():
        if 'stages.3.blocks.0.norm1' in name:
            assert (group['lr'], group['weight_decay']) == (plain[name]['lr'], 1.0) and 'eps' not in group
        elif 'stages.3' in name:
            assert (group['lr'], group['eps']) == (0.5 * plain[name]['lr'], 1e-3)
            assert group['weight_decay'] == plain[name]['weight_decay']
        elif 'head' not in name:
            assert (group['lr'], group['weight_decay']) == (plain[name]['lr'], plain[name]['weight_decay'])


def test_depth_of_layers_as_mmpretrain_asks_for_it(family, build):
    """Its rate is decay ** (number - layer - 1): that of our own constructor."""
    model = nn.ModuleDict({'backbone': build(family, out_norm=True), 'head': nn.Conv2d(3, 3, 1)})
    for group in groups(model, decay_rate=0.5):
        for name in group['names']:
            layer, number = model['backbone'].get_layer_depth(name, 'backbone.')
            assert 0 <= layer < number and group['lr'] == 0.5 ** (number - layer - 1), name
    assert model['backbone'].get_layer_depth('head.weight', 'backbone.') == (number - 1, number)


def test_through_mmengine_with_a_frozen_stem(build):
    model = nn.ModuleDict({'backbone': build(frozen_stages=0)})
    wrapper = build_optim_wrapper(
        model,
        {
            'type': 'OptimWrapper',
            'constructor': 'visionssm.LayerDecayConstructor',
            'optimizer': OPTIMIZER,
            'paramwise_cfg': {'decay_rate': 0.9},
        },
    )
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    names = [name for group in wrapper.optimizer.param_groups for name in group['names']]
    assert names and not any('stem' in name for name in names)


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        ({'decay_rate': 0}, 'decay_rate is 0; allowed is more than 0'),
        ({'layers': 12}, 'has layers; allowed are decay_rate and custom_keys'),
        ({'custom_keys': {'norm': 0.0}}, "custom_keys is .'norm': 0.0.; give"),
    ],
)
def test_errors(paramwise, message, build):
    with pytest.raises(ValueError, match=message):
        groups(nn.ModuleDict({'backbone': build()}), **paramwise)


def test_needs_a_backbone_of_ours():
    with pytest.raises(ValueError, match='Conv2d has no visionssm.Backbone'):
        groups(nn.Conv2d(1, 1, 1))
