"""What is A2Mamba's own: the contract of all models is in test_models.py, the goldens are in test_goldens.py."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

import visionssm  # noqa: F401  registers the models
from visionssm.layers import linear_without_autocast
from visionssm.models import a2mamba
from visionssm.models.a2mamba import rotary_embedding, widest_dilation
from visionssm.scans import get_scan

# windows that exceed 1 in every stage; images from 65 pixels
WIDE = {'windows': (5, 5, 3, 3)}


def create(name='test_a2mamba', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def upstream(model):
    """The state dict of `model` under upstream's names and in its shapes."""
    out = {}
    for name, x in model.state_dict().items():
        part, _, rest = name.partition('.')
        if part == 'stem':
            conv, kind, leaf = rest.split('.')
            index = 3 * (int(conv[-1]) - 1) + (kind == 'bn')
            out[f'patch_embed.{index}.{leaf}'] = x
        elif part == 'stages' and '.downsample.' in name:
            stage, _, _, kind, leaf = rest.split('.')
            out[f'layers.{2 * int(stage) - 1}.{int(kind == "bn")}.{leaf}'] = x
        elif part == 'stages':
            stage, rest = rest.split('.', 1)
            for ours, theirs in (
                ('mixer.', 'token_mixer.'),
                ('mix.conv.', 'ssm.conv2d.'),
                ('mix.fusion.', 'ssm.state_fusion.'),
                ('mix.ssm.dt_proj_', 'ssm.dt_projs_'),
                ('mix.ssm.A_log', 'ssm.A_logs'),
                ('mix.ssm.D', 'ssm.Ds'),
                ('mix.ssm.', 'ssm.'),
                ('mix.rpb', 'rpb.2'),
                ('out_norm.', 'proj.0.'),
                ('out_proj.', 'proj.1.'),
                ('gate.proj.', 'gate.0.'),
                ('gate.norm.', 'gate.1.'),
                ('mlp.conv.', 'mlp.dwconv.'),
                ('ls1.', 'layer_scale1.'),
                ('ls2.', 'layer_scale2.'),
            ):
                rest = rest.replace(ours, theirs)
            key = f'layers.{2 * int(stage)}.{rest}'
            if key.endswith('token_mixer.rpb'):
                out[f'{key}.0'] = torch.zeros_like(x)
                key += '.1'
            if 'layer_scale' in key and key.endswith('weight'):
                x = x.reshape(-1, 1, 1, 1)
            elif '.ssm.' in key and x.shape[:1] == (1,):
                x = x[0]
            elif x.ndim == 2 and key.endswith('.weight'):
                x = x[:, :, None, None]
            out[key] = x
        else:
            index = {'head_proj.proj': 0, 'head_proj.norm': 1, 'head.fc': 4}[name.rpartition('.')[0]]
            x = x[:, :, None, None] if x.ndim == 2 else x
            out[f'classifier.{index}.{name.rpartition(".")[2]}'] = x
    for i in range(4):
        out[f'layers.{2 * i}.rope.angle'] = torch.zeros(8)
    return out


def randomise(model):
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('a2mamba_nano', 4195052),
        ('a2mamba_tiny', 15.366e6),
        ('a2mamba_small', 30672834),
        ('a2mamba_base', 51134464),
        ('a2mamba_large', 93.737e6),
    ],
)
def test_parameters(name, count):
    model = timm.create_model(name, device='meta')
    assert abs(sum(p.numel() for p in model.parameters()) - count) < 1e3 * (count % 1000 == 0) + 0.5


@pytest.mark.parametrize('container', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_checkpoint(container, prefix, tmp_path):
    model = randomise(create()).eval()
    weights = {prefix + name: x for name, x in upstream(model).items()}
    file = tmp_path / 'upstream.pth'
    torch.save({container: weights, 'epoch': 3} if container else weights, file)
    overlay = {'file': str(file)}
    loaded = create(pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(loaded(x), model(x))
    features = create(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True).eval()
    torch.testing.assert_close(features(x), model.forward_intermediates(x, intermediates_only=True))
    headless = create(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, global_pool='').eval()
    torch.testing.assert_close(headless(x), model.forward_features(x))


def test_checkpoint_that_does_not_fit(tmp_path):
    weights = upstream(create())
    weights['layers.0.blocks.0.token_mixer.sideways'] = weights.pop('layers.0.blocks.0.token_mixer.rpb.1')
    file = tmp_path / 'upstream.pth'
    torch.save(weights, file)
    with pytest.raises(ValueError, match=r'(?s)1 missing: stages.0.blocks.0.mixer.rpb\n.*rpb.0, .*sideways'):
        create(pretrained=True, pretrained_cfg_overlay={'file': str(file)})


def test_bias_of_another_size(tmp_path):
    """The global attention's bias, resized when loaded, does what resizing it in every forward does."""
    model = randomise(create()).eval()
    file = tmp_path / 'upstream.pth'
    torch.save(upstream(model), file)
    other = create(img_size=(128, 160), pretrained=True, pretrained_cfg_overlay={'file': str(file)}).eval()
    assert other.stages[-1].blocks[0].mixer.mix.rpb.shape == (1, 4, 20, 20)
    x = torch.randn(2, 3, 128, 160)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


def test_least_size():
    model = create('a2mamba_nano', num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 193, 200)).shape == (1, 3)
        with pytest.raises(ValueError, match='192x224; the least is 193x193'):
            model(torch.randn(1, 3, 192, 224))
        with pytest.raises(ValueError, match='side of 6 with window 7'):  # past the check: compiled, scripted
            model.stages(model.stem.conv4(torch.randn(1, 32, 48, 48)).permute(0, 2, 3, 1))
    assert model.pretrained_cfg['min_input_size'] == (3, 193, 193)


@pytest.mark.parametrize(
    ('side', 'window', 'dilation'), [(56, 11, 5), (28, 9, 3), (14, 7, 2), (7, 7, 1), (200, 11, 11)]
)
def test_dilation(side, window, dilation):
    assert widest_dilation(side, window) == dilation


def test_rotary_embedding():
    """Turned queries and keys have products that depend on the difference of their positions alone."""
    rope = rotary_embedding(5, 6, 16, torch.zeros(0)).double()
    assert rope.shape == (5, 6, 1, 32)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    turned = [a2mamba.rotate(x.expand(1, 5, 6, 1, 16), rope)[0, :, :, 0] for x in (q, k)]
    products = torch.einsum('hwc,yxc->hwyx', *turned)
    torch.testing.assert_close(products[0, 0, 2, 3], products[2, 1, 4, 4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products[3, 2, 0, 1], products[4, 4, 1, 3], rtol=1e-5, atol=1e-5)
    assert (products[0, 0, 2, 3] - products[0, 0, 3, 2]).abs() > 1e-3
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm().expand(5, 6), rtol=1e-5, atol=1e-5)


def test_wide_windows():
    model = randomise(create(**WIDE)).train()
    for size in ((96, 96), (65, 133)):
        model.zero_grad()
        model(torch.randn(2, 3, *size)).square().mean().backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters() if p.grad.numel() > 100)
    with pytest.raises(ValueError, match='64x96; the least is 65x65'):
        model(torch.randn(2, 3, 64, 96))


def test_several_directions():
    """A second direction that says nothing changes nothing; one that speaks does."""
    one, two = (
        randomise(a2mamba.StateAggregation(16, 2, 3, get_scan(scan, count)))
        for scan, count in (('raster', 1), ('bidirectional', 2))
    )
    weights = two.state_dict()
    for name, x in one.state_dict().items():
        if name.startswith('ssm.'):
            weights[name][0] = x[0]
        else:
            weights[name] = x
    weights['ssm.x_proj_weight'][1, -1] = 0  # what C is made of
    weights['ssm.D'][1] = 0
    two.load_state_dict(weights)
    y, near, far = torch.randn(2, 2, 7, 9, 8), *torch.rand(2, 2, 1, 7, 9, 9)
    args = y, y, y, near, far, [2, 3]
    torch.testing.assert_close(two(*args), one(*args))
    with torch.no_grad():
        two.ssm.x_proj_weight[1, -1] = 1
    assert (two(*args) - one(*args)).abs().max() > 1e-2


def test_scale_shortcut():
    """Scales of 1 do nothing, wherever they stand; a scale of 0 on the shortcut leaves the branch alone."""
    plain, branch, shortcut = (
        create(ls_init_values=values, scale_shortcut=on).eval()
        for values, on in (([None] * 4, False), ([1.0] * 4, False), ([1.0] * 4, True))
    )
    branch.load_state_dict(plain.state_dict(), strict=False)
    shortcut.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(branch(x), plain(x))
    torch.testing.assert_close(shortcut(x), plain(x))
    block, maps = shortcut.stages[0].blocks[0], torch.randn(2, 8, 8, 16)
    nn.init.zeros_(block.ls2.weight)
    nn.init.constant_(block.ls2.bias, 3.0)
    rope = rotary_embedding(8, 8, 8, maps)
    inner = maps + block.cpe1(maps)
    inner = block.ls1(inner) + block.mixer(block.norm1(inner), rope)
    expected = 3 + block.mlp(block.norm2(inner + block.cpe2(inner)))
    torch.testing.assert_close(block(maps, rope), expected)


def test_projection_leaves_autocast():
    x, weight = torch.full((2, 4), 300.0), torch.full((3, 4), 100.0)
    with torch.autocast('cpu', torch.float16):
        y = linear_without_autocast(x.half(), weight, torch.zeros(3))
    assert y.dtype == torch.float32 and (y == 120000).all()  # over the range of fp16


def test_decayed():
    """Upstream leaves out what is flat there, and biases; nothing else."""
    model = create('a2mamba_small', device='meta')
    flat = {name for name, p in model.named_parameters() if p.ndim == 1 or name.endswith('.bias')}
    flat |= {name for name, _ in model.named_parameters() if name.endswith(('.ssm.D', '.ssm.dt_proj_bias'))}
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group['weight_decay'] for p in group['params']}
    assert decayed == set(names.values()) - flat
    assert {'stages.2.blocks.0.ls1.weight', 'stages.3.blocks.0.mixer.mix.rpb'} <= decayed


def test_initial_values():
    model = create('a2mamba_base', depths=(1, 1, 1, 1))
    block = model.stages[0].blocks[0]
    ssm = block.mixer.mix.ssm
    for weight in (block.mixer.qkv.weight, block.mlp.conv.weight, model.stem.conv4.conv.weight, block.cpe1.weight):
        assert 0.015 < weight.std() < 0.025
    assert not block.mixer.rpb.any() and not model.stages[3].blocks[0].mixer.mix.rpb.any()
    assert (block.ls1.weight == 1).all() and (model.stages[2].blocks[0].ls2.weight == 1e-6).all()
    assert not block.ls1.bias.any() and not ssm.A_log.any() and (ssm.D == 1).all()
    step = nn.functional.softplus(ssm.dt_proj_bias)
    assert 9e-4 < step.min() < 0.01 and 0.03 < step.max() < 0.11
    assert ssm.dt_proj_weight.abs().max() <= ssm.dt_proj_weight.shape[-1] ** -0.5
    blocks = [block for stage in create(drop_path_rate=0.4).stages for block in stage.blocks]
    assert isinstance(blocks[0].drop_path, nn.Identity)
    assert [round(block.drop_path.drop_prob, 6) for block in blocks[1:]] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_heads': (2, 2, 4)}, 'num_heads has 3 stages and dims 4'),
        ({'num_heads': (2, 3, 4, 4)}, '3 heads of 32 channels'),
        ({'num_heads': (2, 4, 8, 4)}, '8 heads of 48 channels'),
        ({'windows': (7, 4, 3, 3)}, r'windows is \(7, 4, 3, 3\)'),
        ({'img_size': 24}, 'img_size is 24; the least is 25'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create(device='meta', **kwargs)


def test_head_layer():
    """The layer before the pooling stays when the classifier changes, and goes when nothing is left to feed."""
    model = create().eval()
    x = torch.randn(2, 3, 96, 96)
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(7)
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), before)
    assert before.shape == (2, 128) and model.head_hidden_size == 128
    model.reset_classifier(7, '')
    assert model(x).shape == (2, 3, 3, 7)
    model.reset_classifier(0, '')
    assert model.head_hidden_size == model.num_features == 64
    model.reset_classifier(5, 'avg')
    assert model.get_classifier().weight.shape == (5, 64) and model(x).shape == (2, 5)


def test_width_without_classifier():
    """Whoever reads `num_features` of a model without classes gets what comes out of it."""
    model, x = create(num_classes=0).eval(), torch.randn(2, 3, 96, 96)
    assert model(x).shape == (2, model.num_features) and model.head_hidden_size == model.num_features == 64
    whole = create().eval()
    model.load_state_dict(whole.state_dict(), strict=False)
    torch.testing.assert_close(whole.forward_features(x).mean((1, 2)), model(x))
    whole.reset_classifier(0)  # timm's contract: the pre-logits of the classifier
    assert whole(x).shape == (2, whole.head_hidden_size) == (2, 128)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
