"""What only GroupMamba has: channel groups with a direction each, and a distillation head."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from visionssm.models.groupmamba import GroupMamba, GroupMixer
from visionssm.ops import selective_scan
from visionssm.scans import get_scan


def by_definition(m, x):
    """The mixer as the paper has it: every direction gathered, walked by the reference, put back."""
    height, width = x.shape[1:3]
    x = m.norm(x)
    outputs = []
    for g, (group, part) in enumerate(zip(m.groups, x.chunk(len(m.groups), -1), strict=True)):
        steps = torch.tensor(get_scan('cross').table(height, width)[g]).long()
        u, z = group.in_proj(part).chunk(2, -1)
        u = F.silu(group.conv(u.permute(0, 3, 1, 2))).permute(0, 2, 3, 1).flatten(1, 2)[:, steps]
        s = group.ssm
        dt, B, C = (u @ s.x_proj_weight[0].t()).split([s.dt_proj_weight.shape[2], 1, 1], -1)
        y = selective_scan(
            u, (dt @ s.dt_proj_weight[0].t())[:, :, None], -s.A_log.exp(), B[:, :, None], C[:, :, None],
            s.D, None, s.dt_proj_bias, True, backend='reference',
        )  # fmt: skip
        y = y[:, steps.argsort()].unflatten(1, (height, width))
        outputs.append(group.out_proj(group.norm(y) * F.silu(z)))
    weights = torch.sigmoid(m.channel_gate.fc2(F.relu(m.channel_gate.fc1(x.mean((1, 2), keepdim=True)))))
    return m.proj(m.norm(torch.cat(outputs, -1) * m.skip_scale * x * weights))


@pytest.mark.parametrize('size', [(4, 7), (6, 6), (5, 1)], ids=str)
def test_mixer(size):
    """Forward and gradients, on maps that are not square too, where upstream's gradients are wrong."""
    torch.manual_seed(0)
    m = GroupMixer(16, get_scan('groupwise'), dtype=torch.float64)
    x = torch.randn(2, *size, 16, dtype=torch.float64, requires_grad=True)
    inputs = [x, *m.parameters()]
    y, expected = m(x), by_definition(m, x)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    grads, wanted = (torch.autograd.grad((v * weight).sum(), inputs) for v in (y, expected))
    torch.testing.assert_close(grads, wanted)


def test_attached():
    """Groups run at once, and one by one as soon as somebody is to be told of one: with the same numbers."""
    torch.manual_seed(0)
    m, x, seen = GroupMixer(16, get_scan('groupwise')), torch.randn(2, 5, 6, 16), []
    together = m(x)
    hook = m.groups[2].conv.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(m(x), together)
    hook.remove()
    m.groups[1].out_proj = nn.Sequential(m.groups[1].out_proj, nn.Tanh())
    assert seen == [1] and not torch.allclose(m(x), together)


def test_groups():
    """As many groups as the scan has directions."""
    model = timm.create_model('test_groupmamba', scan='bidirectional')
    assert len(model.stages[0].blocks[0].mixer.groups) == len(model.head.block.mixer.groups) == 2
    with pytest.raises(ValueError, match='8 directions, which do not divide 12 channels'):
        GroupMixer(12, get_scan('multihead', 8))


def test_distilled_training():
    model = timm.create_model('test_groupmamba', num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    assert model.train()(x).shape == (2, 7)
    model.set_distilled_training()
    logits, dist = model(x)
    assert logits.shape == dist.shape == (2, 7) and not torch.equal(logits, dist)
    model.eval()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model(x), (model.head.fc(features) + model.head.fc_dist(features)) / 2)
    assert model.get_classifier() == (model.head.fc, model.head.fc_dist)
    model.train().set_distilled_training(False)
    assert model(x).shape == (2, 7)


def test_one_token():
    """The scan of the pooled token has one step: its decay has a gradient, which is exactly zero."""
    model = timm.create_model('test_groupmamba').train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    rates = [p for name, p in model.head.named_parameters() if name.endswith('A_log')]
    assert len(rates) == 4 and all(p.grad.eq(0).all() for p in rates)


def test_reset_classifier():
    """New classifiers leave the weights that refine the pooled token as they are; without pooling there are none."""
    model = timm.create_model('test_groupmamba')
    before = {name: x.clone() for name, x in model.head.block.state_dict().items()}
    model.reset_classifier(5)
    model.reset_classifier(0, 'max')
    assert all(torch.equal(x, before[name]) for name, x in model.head.block.state_dict().items())
    model.reset_classifier(3, '')
    assert [name for name, _ in model.head.named_parameters()] == [
        'fc.weight', 'fc.bias', 'fc_dist.weight', 'fc_dist.bias',
    ]  # fmt: skip
    model.reset_classifier(3, 'avg')
    assert model.head.block.mixer.proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_without_pooling(tmp_path):
    model = timm.create_model('test_groupmamba').eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    overlay = {'file': str(tmp_path / 'weights.pth')}
    args = {'pretrained': True, 'pretrained_cfg_overlay': overlay, 'num_classes': 0}
    x = torch.randn(1, 3, 64, 96)
    maps = timm.create_model('test_groupmamba', global_pool='', **args).eval()
    assert torch.equal(maps(x), model.forward_features(x))
    pooled = timm.create_model('test_groupmamba', **args).eval()
    assert torch.equal(pooled(x), model.forward_head(model.forward_features(x), pre_logits=True))
    features = timm.create_model('test_groupmamba', features_only=True, **{**args, 'num_classes': 1000})
    assert not any(name.startswith('head') for name in features.state_dict())


def test_start():
    """Every convolution starts by its fan-out, the depthwise ones of the mixers too; linear layers with 0.02."""
    model = timm.create_model('test_groupmamba', dims=(64, 64, 64, 64))
    block = model.stages[0].blocks[0]
    for conv, fan_out in ((model.stem.conv1.conv, 49 * 8), (block.mixer.groups[0].conv, 9), (block.mlp.conv, 9)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None)


def test_weight_decay():
    """As upstream: what is 1-D there is exempt."""
    model = timm.create_model('test_groupmamba')
    exempt = model.no_weight_decay() | {name for name, p in model.named_parameters() if p.ndim < 2}
    mixer = 'stages.0.blocks.0.mixer'
    assert {f'{mixer}.skip_scale', f'{mixer}.groups.3.ssm.D'} <= exempt
    assert not any(name.endswith(('A_log', 'dt_proj_bias')) for name in exempt)


def test_bad_arguments():
    with pytest.raises(ValueError, match='depths has 4 stages, dims 3 and mlp_ratios 4'):
        GroupMamba(dims=(8, 8, 8), device='meta')
    with pytest.raises(ValueError, match='patch_size is 8; allowed are 2 and 4'):
        GroupMamba(patch_size=8, device='meta')


def test_parameters():
    """As counted upstream, in thousands."""
    for name, count in {'groupmamba_tiny': 23362, 'groupmamba_small': 34782, 'groupmamba_base': 57151}.items():
        model = timm.create_model(name, device='meta')
        assert round(sum(p.numel() for p in model.parameters()) / 1e3) == count
