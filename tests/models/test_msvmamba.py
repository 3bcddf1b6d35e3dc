"""What only MSVMamba has: two branches with an order each, two generations."""

import pytest
import timm
import torch
import torch.nn.functional as F

from visionssm.models.msvmamba import MSVMamba, MultiScaleMixer
from visionssm.ops import selective_scan
from visionssm.scans import get_scan, list_scans

V1 = {'expand': 2.0, 'gate': True, 'norm_steps': True, 'upsample': 'bilinear', 'full_set': 1}
V3 = {'expand': 1.0, 'gate': False, 'norm_steps': False, 'upsample': 'nearest', 'full_set': 0}


def mixer(**kwargs):
    torch.manual_seed(0)
    return MultiScaleMixer(16, dtype=torch.float64, **kwargs)


def by_definition(m, x, norm_steps, upsample, full_set):
    """The mixer as the paper has it: gather, walk by the reference, scatter by hand."""
    height, width = x.shape[1:3]
    x, z = (m.in_proj(x), None) if not m.gate else m.in_proj(x).chunk(2, -1)

    def walk(tokens, order, k):
        ssm, steps = m.ssm, torch.tensor(order.reshape(-1)).long()
        u = tokens.flatten(1, 2)[:, steps]
        dt, B, C = (u @ ssm.x_proj_weight[k].t()).split([ssm.dt_proj_weight.shape[2], 1, 1], -1)
        y = selective_scan(
            u, (dt @ ssm.dt_proj_weight[k].t())[:, :, None], -ssm.A_log[k : k + 1].exp(), B[:, :, None], C[:, :, None],
            ssm.D[k : k + 1], None, ssm.dt_proj_bias[k : k + 1], True, backend='reference',
        )  # fmt: skip
        y = m.norm(y) if norm_steps else y
        out = torch.zeros_like(tokens).flatten(1, 2)
        for step, token in enumerate(steps.tolist()):
            out[:, token] = out[:, token] + y[:, step]
        return out.unflatten(1, tokens.shape[1:3])

    def convolve(conv):
        return F.silu(conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    y = walk(convolve(m.conv), get_scan(m.scan).table(height, width), full_set)
    half = convolve(m.half_conv)
    half = walk(half, get_scan(m.half_scan).table(*half.shape[1:3]), 1 - full_set)
    y = y + F.interpolate(half.permute(0, 3, 1, 2), (height, width), mode=upsample).permute(0, 2, 3, 1)
    y = y if norm_steps else m.norm(y)
    y = y * torch.sigmoid(m.channel_gate.fc2(F.relu(m.channel_gate.fc1(y.mean((1, 2), keepdim=True)))))
    return m.out_proj(y if z is None else y * F.silu(z))


@pytest.mark.parametrize('args', [V1, V3], ids=['v1', 'v3'])
@pytest.mark.parametrize('orders', [('raster', 'multiscale'), ('column', 'hilbert'), ('atrous', 'cross')], ids=str)
def test_mixer(args, orders):
    """Forward and gradients on an odd map that is not square."""
    m = mixer(**args, scan=orders[0], half_scan=orders[1])
    x = torch.randn(2, 4, 7, 16, dtype=torch.float64, requires_grad=True)
    inputs = [x, *m.parameters()]
    y, expected = m(x), by_definition(m, x, args['norm_steps'], args['upsample'], args['full_set'])
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    grads, wanted = (torch.autograd.grad((v * weight).sum(), inputs) for v in (y, expected))
    torch.testing.assert_close(grads, wanted)


def test_state_goes_on_between_directions():
    """The half-resolution directions are one sequence: the last sees tokens that the first walked."""
    ssm = mixer(**V3).ssm
    with torch.no_grad():
        ssm.A_log.fill_(-4.0)  # a long memory
        ssm.D.zero_()
    table = torch.tensor(get_scan('multiscale').table(4, 4)).view(3, -1)
    tokens = torch.randn(1, 16, 16, dtype=torch.float64)
    whole = ssm(tokens, table.view(1, -1), 1)
    apart = sum(ssm(tokens, row[None], 1) for row in table)
    assert (whole - apart).std() > 0.1 * apart.std()


@pytest.mark.parametrize('name', ['test_msvmamba', 'test_msvmambav3'])
def test_half_scan(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 64, 96)
    y = model(x)
    model.set_scan('snake')
    assert (get_scan(model.scan).name, get_scan(model.half_scan).name) == ('snake', 'multiscale')
    model.set_scan('raster', 'spiral')
    assert not torch.equal(model(x), y)
    other = timm.create_model(name, half_scan='spiral').eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match='unknown scan'):
        model.set_scan('column', 'sideways')
    assert get_scan(model.scan).name == 'raster'
    assert model._model_args['half_scan'] == model.half_scan


@pytest.mark.parametrize('scan', list_scans())
def test_every_half_scan(scan):
    model = timm.create_model('test_msvmamba', half_scan=scan).eval()
    assert model(torch.randn(1, 3, 33, 75)).isfinite().all()


def test_start():
    """1x1 convolutions of the MLPs start as PyTorch's, other linear layers with a deviation of 0.02."""
    model = timm.create_model('test_msvmambav3', dims=(64, 64, 64, 64))
    block = model.stages[3].blocks[0]
    assert block.mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mlp.fc1.weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)
    assert block.mlp.fc1.bias.std() > 0 and not model.head.fc.bias.any()
    assert model.stages[0].blocks[0].mixer.ssm.D.eq(1).all()


def test_bad_arguments():
    for wrong, message in (
        ({'upsample': 'area'}, "upsample is 'area'; allowed are bilinear, nearest"),
        ({'full_set': 2}, 'full_set is 2; allowed are 0, 1'),
        ({'stem': 'conv'}, "stem is 'conv'; allowed are patch, overlap"),
        ({'downsample': 'pool'}, "downsample is 'pool'; allowed are merge, conv"),
        ({'depths': (1, 1)}, 'depths has 2 stages and dims 4'),
    ):
        with pytest.raises(ValueError, match=message):
            MSVMamba(**wrong, device='meta')


def test_averaged_weights(tmp_path):
    """v3 files hold averaged weights beside the others, which upstream's loader takes; v1 takes 'model'."""
    for name, expected in (('test_msvmamba', 0.0), ('test_msvmambav3', 1.0)):
        state = timm.create_model(name).state_dict()
        both = {
            key: {k: torch.full_like(x, v) for k, x in state.items()} for v, key in enumerate(('model', 'model_ema'))
        }
        torch.save(both, tmp_path / 'both.pth')
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'both.pth')})
        assert model.head.fc.weight.eq(expected).all()


def test_parameters():
    """As the authors count them, in thousands."""
    counts = {'msvmamba_nano': 6864, 'msvmamba_micro': 11879, 'msvmamba_tiny': 33046, 'msvmambav3_tiny': 32264}
    for name, count in {**counts, 'msvmambav3_small': 50216, 'msvmambav3_base': 90592}.items():
        model = timm.create_model(name, device='meta')
        assert round(sum(p.numel() for p in model.parameters()) / 1e3) == count
