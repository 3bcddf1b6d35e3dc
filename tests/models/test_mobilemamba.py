"""What is MobileMamba's own: the contract of all models is in test_models.py, the goldens are in test_goldens.py."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import nn

import visionssm  # noqa: F401  registers the models
from visionssm.models.mobilemamba import Haar, MobileMamba

FILTERS = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]).double() / 2


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_mobilemamba', **kwargs)


def as_trained(model):
    """Norms with statistics of their own, and no branch that is 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for x in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(x, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize('size', [(6, 8), (5, 3), (1, 1)], ids=str)
def test_wavelets_by_their_filters(size):
    """As grouped convolutions with the filters of the Haar transform, whose channels come band by band."""
    dim, (height, width) = 3, size
    torch.manual_seed(0)
    haar = Haar(dim, 3).double()
    nn.init.normal_(haar.scale)
    x = torch.randn(2, height, width, dim, dtype=torch.float64)
    padded = F.pad(x.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
    filters = FILTERS.repeat(dim, 1, 1)[:, None]

    def by_channel(y):
        return y.unflatten(-1, (4, dim)).transpose(-1, -2).flatten(-2)

    weight = haar.conv.weight.reshape(4, dim, 3, 3).transpose(0, 1).reshape(4 * dim, 1, 3, 3)
    y = F.conv2d(padded, filters, stride=2, groups=dim)
    y = F.conv2d(y, weight, padding=1, groups=4 * dim) * by_channel(haar.scale).permute(0, 3, 1, 2)
    y = F.conv_transpose2d(y, filters, stride=2, groups=dim)[..., :height, :width]
    torch.testing.assert_close(haar(x), y.permute(0, 2, 3, 1))


def test_other_filters_are_refused(tmp_path):
    """A file whose filters are no Haar transform means another model."""
    upstream = {'blocks1.0.mixer.m.attn.global_op.wt_filter': FILTERS.repeat(32, 1, 1)[:, None].float()}
    model = create()
    assert not MobileMamba.checkpoint_filter_fn(upstream, model)
    upstream = {name: x.flip(0) for name, x in upstream.items()}
    assert list(MobileMamba.checkpoint_filter_fn(upstream, model)) == ['stages.0.blocks.0.mixer.global_op.wt_filter']


@pytest.mark.parametrize('args', [{}, {'distillation': True}, {'num_classes': 0}], ids=str)
def test_reparameterised(args):
    """No norm after a convolution is left, and what comes out is the same."""
    model = as_trained(create(**args).double())
    fused = reparameterize_model(model)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    once = reparameterize_model(fused)
    assert torch.equal(once(x), fused(x))


def test_distillation():
    model = create(distillation=True, num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, 7)
    model.set_distilled_training()
    logits, taught = model(x)
    assert logits.shape == taught.shape == (2, 7) and not torch.equal(logits, taught)
    assert len(model.get_classifier()) == 2 and model.eval()(x).shape == (2, 7)
    plain = create(num_classes=7)
    plain.set_distilled_training()
    assert plain(x).shape == (2, 7)


def test_start():
    """As upstream's: what ends a residual branch is 0, scans decay at rate 1."""
    block = create().stages[1].blocks[0]
    ends = (block.conv1, block.mlp1.fc2, block.mixer.proj, block.conv2, block.mlp2.fc2)
    assert not any(norm.bn.weight.any() for norm in ends)
    ssm = block.mixer.ss2d.ssm
    assert not ssm.A_log.any() and 0 <= ssm.dt_proj_bias.min() < ssm.dt_proj_bias.max() <= 0.1
    assert create().stages[1].downsample.conv1.bn.weight.all()


def test_weight_decay():
    """As upstream: what is 1-D there is exempt, and all else is not."""
    model = create()
    exempt = model.no_weight_decay() | {name for name, p in model.named_parameters() if p.ndim < 2}
    mixer = 'stages.0.blocks.0.mixer'
    assert f'{mixer}.ss2d.ssm.D' in exempt
    assert not {f'{mixer}.scan_scale', f'{mixer}.haar.scale', f'{mixer}.ss2d.ssm.A_log'} & exempt


def test_channels():
    """As the paper's code splits them: scanned, convolved, kept."""
    parts = {
        name: [stage.blocks[0].mixer.parts for stage in timm.create_model(f'mobilemamba_{name}', device='meta').stages]
        for name in ('t2', 't4', 's6', 'b1')
    }
    assert parts == {
        't2': [[112, 28, 4], [192, 54, 26], [224, 110, 34]],
        't4': [[144, 32, 0], [256, 73, 39], [272, 134, 42]],
        's6': [[160, 32, 0], [272, 76, 36], [272, 134, 42]],
        'b1': [[160, 40, 0], [256, 75, 45], [272, 134, 42]],
    }


def test_bad_arguments():
    with pytest.raises(ValueError, match='numbers of stages differ: depths 3, dims 2'):
        MobileMamba(dims=(16, 32), device='meta')
    with pytest.raises(ValueError, match='dims starts with 20; allowed are multiples of 8'):
        MobileMamba(dims=(20, 32, 64), device='meta')
    with pytest.raises(ValueError, match='kernel_sizes has 4; allowed are odd numbers'):
        MobileMamba(kernel_sizes=(7, 4, 3), device='meta')
    with pytest.raises(ValueError, match='stage 0 of 32 channels would scan 32 and convolve 0'):
        MobileMamba(dims=(32, 64, 96), device='meta')
