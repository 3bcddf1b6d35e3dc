"""What only MambaVision has: windows, its mixer, and tags for larger images."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from visionssm.cli import main
from visionssm.models.dense import DenseModel
from visionssm.models.mambavision import MambaVision, MambaVisionMixer, WindowStage
from visionssm.ops import selective_scan


def by_definition(m, x):
    """The mixer as the specification has it: two convolutions that look both ways, the bias of the steps twice."""
    x, z = m.in_proj(x).chunk(2, -1)
    x, z = (
        F.silu(F.conv1d(y.transpose(1, 2), conv.weight, padding=1, groups=y.shape[2]).transpose(1, 2))
        for y, conv in ((x, m.conv_x), (z, m.conv_z))
    )
    s = m.ssm
    dt, B, C = F.linear(x, s.x_proj_weight[0]).split([s.dt_proj_weight.shape[2], 8, 8], -1)
    delta = (F.linear(dt, s.dt_proj_weight[0]) + s.dt_proj_bias[0])[:, :, None]
    y = selective_scan(
        x, delta, -s.A_log.exp(), B[:, :, None], C[:, :, None], s.D, None, s.dt_proj_bias, True, backend='reference'
    )
    return m.out_proj(torch.cat([y, z], -1))


def test_mixer():
    torch.manual_seed(0)
    m = MambaVisionMixer(16, 3, dtype=torch.float64)
    torch.nn.init.normal_(m.ssm.dt_proj_bias)
    x = torch.randn(4, 9, 16, dtype=torch.float64, requires_grad=True)
    inputs = [x, *m.parameters()]
    y, expected = m(x), by_definition(m, x)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    grads, wanted = (torch.autograd.grad((v * weight).sum(), inputs) for v in (y, expected))
    torch.testing.assert_close(grads, wanted)


class Stamp(torch.nn.Module):
    """Adds to every token its place in its window, to every window its number, times 100."""

    def forward(self, x):
        window, place = torch.meshgrid(torch.arange(x.shape[0]), torch.arange(x.shape[1]), indexing='ij')
        return x + (100 * window + place)[..., None]


def stamped(height, width, window, dilation=1):
    stage = WindowStage(torch.nn.Identity(), [Stamp()], window)
    stage.dilation = dilation
    return stage(torch.zeros(1, height, width, 1))[0, :, :, 0].int().tolist()


def test_windows():
    """Row by row, and those at the border are filled up right and below."""
    assert stamped(3, 4, 2) == [[0, 1, 100, 101], [2, 3, 102, 103], [200, 201, 300, 301]]
    assert stamped(2, 2, 3) == [[0, 1], [3, 4]]
    # of dilated ones, several share a stretch of the map
    assert stamped(4, 3, 2, dilation=2) == [[0, 100, 1], [200, 300, 201], [2, 102, 3], [202, 302, 203]]


def test_padding_is_mixed_in():
    """The zeros that fill a window up are seen by all of it, as the published weights expect."""
    torch.manual_seed(0)
    model = timm.create_model('test_mambavision', windows=(8, 4)).eval()
    other = timm.create_model('test_mambavision', windows=(6, 3)).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 96)
    first, second = (m.forward_intermediates(x, intermediates_only=True) for m in (model, other))
    assert torch.equal(first[1], second[1]) and (first[2] - second[2]).std() > 1e-3 * first[2].std()


@pytest.mark.parametrize('stride', [8, 16])
def test_dilated_windows(stride):
    """At every other pixel, a stage that keeps the size says what it says when it halves the map."""
    torch.manual_seed(0)
    args = {'windows': (3, 2), 'dtype': torch.float64}
    model = timm.create_model('test_mambavision', output_stride=stride, **args).eval()
    plain = timm.create_model('test_mambavision', **args).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 192, 192, dtype=torch.float64)
    maps, halved = (m.forward_intermediates(x, intermediates_only=True) for m in (model, plain))
    for y, expected, step in zip(maps, halved, [max(1, 4 * 2**i // stride) for i in range(4)], strict=True):
        torch.testing.assert_close(y[..., ::step, ::step], expected)


def test_zero_tokens():
    """A window of 3 x 3 is walked in four of 2 x 2 with zero tokens; they are steps of their own."""
    torch.manual_seed(0)
    mixer, padded = (
        MambaVisionMixer(16, 3, scan={'name': 'local', 'window': 2, **pad}) for pad in ({}, {'pad': 'zero'})
    )
    for p in mixer.ssm.parameters():
        torch.nn.init.normal_(p)
    padded.load_state_dict(mixer.state_dict())
    x = torch.randn(4, 9, 16)
    y = padded(x)
    assert y.shape == x.shape and (y - mixer(x)).std() > 1e-3 * y.std()


@pytest.mark.parametrize(
    ('name', 'windows', 'size', 'crop', 'mode'),
    [
        ('mambavision_tiny.in1k', (14, 7), 224, 1.0, 'center'),
        ('mambavision_tiny2', (14, 7), 224, 0.98, 'center'),
        ('mambavision_small.in1k', (14, 7), 224, 0.93, 'center'),
        ('mambavision_large2', (14, 7), 224, 1.0, 'center'),
        ('mambavision_large2.in21k_ft_in1k_512', (32, 16), 512, 0.93, 'squash'),
        ('mambavision_large3', (16, 8), 256, 1.0, 'center'),
        ('mambavision_large3.in21k_ft_in1k_512', (32, 16), 512, 0.93, 'squash'),
    ],
)
def test_tags(name, windows, size, crop, mode):
    model = timm.create_model(name, device='meta')
    config = resolve_data_config({}, model=model)
    assert model.windows == windows and config['input_size'] == (3, size, size)
    assert (config['crop_pct'], config['crop_mode'], config['interpolation']) == (crop, mode, 'bicubic')


def test_windows_follow_the_image_size():
    assert timm.create_model('mambavision_tiny', img_size=(512, 300), device='meta').windows == (32, 16)
    assert timm.create_model('mambavision_tiny', img_size=512, windows=(14, 7), device='meta').windows == (14, 7)


def upstream():
    """A checkpoint under upstream's names."""
    model = timm.create_model('test_mambavision')
    place = {'stem.conv1.conv': '0', 'stem.conv1.bn': '1', 'stem.conv2.conv': '3', 'stem.conv2.bn': '4'}
    names = {}
    for name in model.state_dict():
        theirs = name
        for ours, number in place.items():
            theirs = theirs.replace(ours, f'patch_embed.conv_down.{number}')
        for i in range(4):
            theirs = theirs.replace(f'stages.{i + 1}.downsample.conv.', f'levels.{i}.downsample.reduction.0.')
        theirs = theirs.replace('stages.', 'levels.').replace('norm.bn.', 'norm.').replace('head.fc.', 'head.')
        theirs = theirs.replace('.ls1.gamma', '.gamma_1').replace('.ls2.gamma', '.gamma_2').replace('conv_', 'conv1d_')
        theirs = theirs.replace('conv1d_down', 'conv_down').replace('.ssm', '')
        names[name] = theirs.replace('proj_weight', 'proj.weight').replace('proj_bias', 'proj.bias')
    own = model.state_dict()
    weights = {theirs: own[name] for name, theirs in names.items()}
    return {key: x[0].clone() if '_proj.' in key and x.ndim == 3 else x for key, x in weights.items()}, own


@pytest.mark.parametrize('container', ['state_dict', 'model', '', 'module', 'encoder', 'safetensors'])
def test_containers(container, tmp_path):
    """Whatever upstream's loader takes, and the layout that the Hub's safetensors files have."""
    weights, own = upstream()
    assert 'levels.2.blocks.0.mixer.dt_proj.weight' in weights and 'patch_embed.conv_down.4.running_var' in weights
    file = tmp_path / 'weights.pth.tar'
    if container == 'safetensors':
        file = tmp_path / 'model.safetensors'
        save_file({f'model.{key}': x for key, x in weights.items()}, file)
    elif container in ('module', 'encoder'):
        torch.save({'state_dict': {f'{container}.{key}': x for key, x in weights.items()}}, file)
    elif container == 'state_dict':
        average = {key: torch.zeros_like(x) for key, x in weights.items()}
        torch.save({'model': average, 'state_dict': weights, 'state_dict_ema': average, 'epoch': 1}, file)
    else:
        torch.save({container: weights} if container else weights, file)
    model = timm.create_model('test_mambavision', pretrained=True, pretrained_cfg_overlay={'file': str(file)})
    assert all(torch.equal(x, own[key]) for key, x in model.state_dict().items())
    del weights['levels.0.blocks.0.conv1.bias']
    torch.save({'state_dict': weights}, tmp_path / 'lacking.pth')
    with pytest.raises(ValueError, match=r'1 missing: stages\.0\.blocks\.0\.conv1\.bias'):
        timm.create_model(
            'test_mambavision', pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'lacking.pth')}
        )


def test_detector_backbone():
    """Upstream's norms behind maps are LayerNorms with an epsilon that is not that of the final BatchNorm."""
    dense = DenseModel(timm.create_model('test_mambavision'), range(4), out_norm=True)
    assert dense.outnorm3.eps == 1e-6 and [y.shape[1] for y in dense(torch.randn(1, 3, 64, 64))] == [16, 32, 48, 64]


def test_start():
    """Every linear layer starts with 0.02, those of the steps too; rates and skips as in Mamba."""
    torch.manual_seed(0)
    model = timm.create_model('mambavision_nano', init_values=1e-5)
    block = model.stages[2].blocks[0]
    ssm = block.mixer.ssm
    for weight in (ssm.x_proj_weight, ssm.dt_proj_weight, block.mixer.in_proj.weight, block.mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not ssm.dt_proj_bias.any() and ssm.D.eq(1).all() and block.ls1.gamma.eq(1e-5).all()
    torch.testing.assert_close(ssm.A_log[0, 0].exp(), torch.arange(1.0, 9.0))
    assert [type(block.mixer).__name__ for block in model.stages[2].blocks] == ['MambaVisionMixer', 'SelfAttention']


def test_weight_decay():
    """As upstream: what is 1-D there is exempt, `A_log` is not."""
    model = timm.create_model('test_mambavision')
    exempt = model.no_weight_decay()
    assert {name.rpartition('.')[2] for name in exempt} == {'D', 'dt_proj_bias'} and len(exempt) == 6


def test_licence(capsys):
    """Whoever looks the weights up is told that they are not for commercial use."""
    assert get_pretrained_cfg('mambavision_tiny').license == 'cc-by-nc-sa-4.0'
    for command in (['list', 'mambavision_tiny'], ['info', 'mambavision_tiny'], ['weights', 'mambavision_tiny']):
        assert main(command) == 0
        assert 'cc-by-nc-sa-4.0 (non-commercial)' in capsys.readouterr().out


def test_bad_arguments():
    for args, message in (
        ({'depths': (1, 1, 1)}, 'depths has 3 stages and dims 4'),
        ({'windows': (7,)}, r'windows is \(7,\); it must be two numbers from 1'),
        ({'windows': (7, 0)}, r'windows is \(7, 0\)'),
        ({'num_heads': (8, 16, 32)}, r'num_heads is \(8, 16, 32\)'),
        ({'num_heads': (7, 16)}, '7 heads of 320 channels: heads must divide them'),
        ({'d_conv': 4}, 'd_conv 4: dim must be even and d_conv odd'),
    ):
        with pytest.raises(ValueError, match=message):
            MambaVision(device='meta', **args)
