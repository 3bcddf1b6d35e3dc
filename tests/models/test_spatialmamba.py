"""What only Spatial-Mamba has: states fused on the map before they are read, with other borders in training."""

import pytest
import timm
import torch
import torch.nn.functional as F

import visionssm  # noqa: F401  registers the models
from visionssm.models.spatialmamba import SpatialMixer, StateFusion
from visionssm.scans import get_scan


def randomise(module):
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module.double()


def fuse(m, x, mode):
    """Three convolutions, each padded on its own, as the specification has it."""
    x = x.permute(0, 3, 1, 2)
    kernels = zip((m.kernel1, m.kernel3, m.kernel5), m.alpha, (1, 3, 5), strict=True)
    maps = [
        alpha * F.conv2d(F.pad(x, [d * m.spacing] * 4, mode=mode), kernel, dilation=d * m.spacing, groups=x.shape[1])
        for kernel, alpha, d in kernels
    ]
    return sum(maps).permute(0, 2, 3, 1)


@pytest.mark.parametrize('spacing', [1, 2])
@pytest.mark.parametrize(('training', 'mode'), [(True, 'replicate'), (False, 'constant')])
def test_fusion_is_the_definition(training, mode, spacing):
    """In evaluation, one kernel stands for the three, and follows them."""
    fusion = randomise(StateFusion(6)).train(training)
    fusion.spread(spacing)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    for _ in range(2):
        results = []
        for y in (fusion(x), fuse(fusion, x, mode)):
            results.append([y, *torch.autograd.grad(y.square().sum(), list(fusion.parameters()))])
        torch.testing.assert_close(*results)
        with torch.no_grad():
            fusion.alpha.add_(1.0)


def test_mixer_is_the_definition():
    """One state per channel and direction, token by token."""
    mixer = randomise(SpatialMixer(8, 2, get_scan('bidirectional', 2))).eval()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, -1)
    u = F.silu(mixer.conv(u)).flatten(1, 2)
    ssm, y = mixer.ssm, 0.0
    for k, path in enumerate((range(12), reversed(range(12)))):
        dt, B, C = (u @ ssm.x_proj_weight[k].T).split([1, 1, 1], -1)
        delta = F.softplus(dt @ ssm.dt_proj_weight[k].T + ssm.dt_proj_bias[k])
        h, states = torch.zeros(2, 16, dtype=torch.float64), torch.empty_like(u)
        for i in path:
            h = torch.exp(-delta[:, i] * ssm.A_log[k, :, 0].exp()) * h + delta[:, i] * B[:, i] * u[:, i]
            states[:, i] = h
        y = y + mixer.fusion(states.unflatten(1, (3, 4))).flatten(1, 2) * C + u * ssm.D[k]
    expected = mixer.out_proj(mixer.norm(y.unflatten(1, (3, 4))) * F.silu(z))
    torch.testing.assert_close(mixer(x), expected)


def test_dilated_stages_spread_the_fusion():
    model = timm.create_model('test_spatialmamba', output_stride=8)
    assert [stage.blocks[0].mixer.fusion.spacing for stage in model.stages] == [1, 1, 2, 4]


def test_names_of_upstream():
    model = timm.create_model('test_spatialmamba')
    block = 'layers.2.blocks.1'
    names = {
        'patch_embed.conv3.1.norm.running_var': 'stem.conv5.bn.running_var',
        'layers.0.downsample.conv.2.norm.bias': 'stages.1.downsample.fc2.bn.bias',
        f'{block}.ln_1.weight': 'stages.2.blocks.1.norm1.weight',
        f'backbone.{block}.ln_2.bias': 'stages.2.blocks.1.norm2.bias',
        f'{block}.self_attention.A_logs': 'stages.2.blocks.1.mixer.ssm.A_log',
        f'{block}.self_attention.state_fusion.kernel_3': 'stages.2.blocks.1.mixer.fusion.kernel1',
        f'{block}.self_attention.state_fusion.kernel_3_1': 'stages.2.blocks.1.mixer.fusion.kernel3',
        f'{block}.self_attention.state_fusion.kernel_3_2': 'stages.2.blocks.1.mixer.fusion.kernel5',
        f'{block}.self_attention.state_fusion.alpha': 'stages.2.blocks.1.mixer.fusion.alpha',
        'head.weight': 'head.fc.weight',
    }
    state = model.state_dict()
    upstream = {theirs: state[ours] for theirs, ours in names.items()}
    assert list(model.checkpoint_filter_fn(upstream, model)) == list(names.values())


def test_stages_of_unequal_number():
    with pytest.raises(ValueError, match='depths has 2 stages and dims 4'):
        timm.create_model('test_spatialmamba', depths=(1, 1))


def test_weight_decay_as_upstream():
    """Skips, biases of the steps and alpha are exempt; rates and kernels decay."""
    model = timm.create_model('test_spatialmamba')
    kept, shapes = model.no_weight_decay(), {name: p.ndim for name, p in model.named_parameters()}
    block = 'stages.0.blocks.0.mixer'
    assert {f'{block}.ssm.D', f'{block}.ssm.dt_proj_bias'} < kept and shapes[f'{block}.fusion.alpha'] == 1
    decayed = (f'{block}.ssm.A_log', f'{block}.fusion.kernel5')
    assert not kept & set(decayed) and all(shapes[name] > 1 for name in decayed)
