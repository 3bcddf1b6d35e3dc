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
        ({'layers': 12}, 'has layers; allowed is decay'),
    ],
)
def test_errors(paramwise, message, build):
    with pytest.raises(ValueError, match=message):
        groups(nn.ModuleDict({'backbone': build()}), **paramwise)


def test_needs_a_backbone_of_ours():
    with pytest.raises(ValueError, match='Conv2d has no visionssm.Backbone'):
        groups(nn.Conv2d(1, 1, 1))
