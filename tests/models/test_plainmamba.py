"""PlainMamba: its quirks, its direction codes, scans of any number of directions, its checkpoints."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from visionssm.models.plainmamba import PlainMambaMixer
from visionssm.ops import selective_scan_ref
from visionssm.scans import get_scan, step_moves

NAME = 'test_plainmamba'


def model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, **kwargs).eval()


def walk_of(scan, height, width):
    order = torch.tensor(get_scan(scan, 4).table(height, width)).long()
    return torch.stack([order, step_moves(order, width)])


def mixer_of(scan):
    torch.manual_seed(0)
    mixer = PlainMambaMixer(8, d_state=3, scan=scan).double()
    torch.nn.init.normal_(mixer.direction_B)
    torch.nn.init.normal_(mixer.x_proj.weight)
    return mixer


def mix_slowly(mixer, x, walk):
    """One direction after the other, permuted the way upstream does: the tokens alone, not their parameters."""
    N = mixer.d_state
    x, z = mixer.in_proj(x).chunk(2, -1)
    shape = x.shape
    x = F.silu(mixer.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1).flatten(1, 2)
    dt, B, C = mixer.x_proj(x).split([mixer.dt_proj.in_features, N, N], -1)
    delta = F.softplus(F.linear(dt, mixer.dt_proj.weight) + 2 * mixer.dt_proj.bias)
    out = torch.zeros_like(x)
    for order, moves in zip(*walk, strict=True):
        y = selective_scan_ref(
            x[:, order],
            delta[:, :, None],
            -mixer.A_log.exp()[None],
            (B + mixer.direction_B[moves])[:, :, None],
            C[:, :, None],
            mixer.D[None],
        )
        out = out.index_add(1, order, y)
    return mixer.out_proj((out * F.silu(z.flatten(1, 2))).view(shape))


@pytest.mark.parametrize('scan', ['plainmamba', 'snake', 'bidirectional', {'name': 'local', 'window': 2}], ids=str)
@pytest.mark.parametrize('size', [(4, 4), (3, 5), (1, 7)], ids=str)
def test_mixer(scan, size):
    mixer, walk = mixer_of(scan), walk_of(scan, *size)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    expected = mix_slowly(mixer, x, walk)
    torch.testing.assert_close(mixer(x, walk), expected)
    mixer.permutation = False  # the way of orders that leave tokens out or repeat them
    torch.testing.assert_close(mixer(x, walk), expected)


@pytest.mark.parametrize('scan', ['multiscale', 'atrous'])
def test_other_lengths(scan):
    """Three visits of every token, or of a quarter of them: still differentiable throughout."""
    mixer, walk = mixer_of(scan), walk_of(scan, 3, 5)
    assert walk.shape[2] != 15
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    mixer(x, walk).square().sum().backward()
    grads = {name: p.grad for name, p in mixer.named_parameters()} | {'x': x.grad}
    assert not [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]


def test_codes():
    """Row snake: right along the first row, down, left along the second, and so on; then the other three."""
    _, moves = walk_of('plainmamba', 2, 3)
    assert moves.tolist() == [[0, 1, 1, 4, 2, 2], [0, 1, 1, 3, 2, 2], [0, 4, 1, 3, 1, 4], [0, 3, 2, 4, 2, 3]]
    net = model()
    _, walk = net._prepare(torch.randn(1, 3, 96, 96))
    assert walk.shape == (2, 4, 36)
    assert (walk[1] == 0).sum() == 4  # no jumps
    assert torch.equal(walk, walk_of('plainmamba', 6, 6))


@pytest.mark.parametrize(
    'scan', ['raster', 'bidirectional', 'multiscale', 'multihead', {'name': 'random', 'directions': 5}]
)
def test_any_number_of_directions(scan):
    """All directions share their parameters, so weights fit whatever the number."""
    net, other = model(), model(scan=scan)
    other.load_state_dict(net.state_dict())
    net.set_scan(scan)
    x = torch.randn(2, 3, 96, 96)
    assert net.scan == other.scan and torch.equal(net(x), other(x))


def test_initialisation():
    net = model(num_classes=10)
    for block in net.blocks:
        steps = F.softplus(block.mixer.dt_proj.bias)
        assert steps.min() >= 0.99e-4 and steps.max() <= 0.101 and steps.std() > 1e-3
        assert 0.015 < block.mixer.in_proj.weight.std() < 0.025 and not block.mixer.in_proj.bias.any()
        assert torch.equal(block.mixer.A_log[3], torch.arange(1, 17).log())
    assert net.head.weight.std() < 0.012


def test_no_weight_decay():
    exempt = model().no_weight_decay()
    assert exempt >= {'pos_embed', 'blocks.0.mixer.A_log', 'blocks.3.mixer.direction_B'} and len(exempt) == 1 + 2 * 4


def test_sizes():
    """The grid is rounded up; maps go by any rectangle."""
    net = model()
    for size, grid in (((96, 96), (6, 6)), ((97, 33), (7, 3)), ((1, 40), (1, 3))):
        assert net.patch_embed.dynamic_feat_size(size) == grid
        maps = net.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
        assert maps[0].shape[-2:] == grid
    with pytest.raises(ValueError, match='img_size is 0x8'):
        net.set_input_size((0, 8))


def test_input_size():
    net = model()
    x = torch.randn(2, 3, 64, 112)
    expected = net(x)
    net.set_input_size((64, 112))
    assert net.pos_embed.shape == (1, 28, 64)
    torch.testing.assert_close(net(x), expected)


def test_depthwise_block_replaces():
    """The convolution of a block has no skip connection."""
    block = model().blocks[0]
    torch.nn.init.zeros_(block.conv.conv.weight)
    x, walk = torch.randn(1, 3, 4, 64), walk_of('plainmamba', 3, 4)
    y = block(x, walk)
    assert torch.allclose(y, y[0, 0, 0].expand_as(y))


def upstream(net):
    """The weights of `net` under upstream's names, as its trainer saves them."""
    state = {}
    for name, x in net.state_dict().items():
        for new, old in (
            ('blocks.', 'layers.'),
            ('.mixer.', '.mamba.'),
            ('.mamba.conv.', '.mamba.conv2d.'),
            ('direction_B', 'direction_Bs'),
            ('patch_embed.proj.', 'patch_embed.projection.'),
            ('.stem.conv.', '.stem.0.'),
            ('.stem.bn.', '.stem.1.'),
            ('.convs.0.conv.', '.convs.0.'),
            ('.convs.0.bn.', '.convs.1.'),
            ('.convs.1.conv.', '.convs.3.'),
            ('.convs.1.bn.', '.convs.4.'),
            ('.conv.conv.', '.dw.0.'),
            ('.conv.bn.', '.dw.1.'),
        ):
            name = name.replace(new, old)
        if name.startswith('norm.'):
            name = name.replace('norm.', 'ln1.')
        state[name.replace('head.', 'head.fc.') if name.startswith('head.') else f'backbone.{name}'] = x
    return state


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_checkpoint(prefix, tmp_path):
    """mmcv's container, buffers of its averaging hook and a backbone prefix."""
    net = model(stem_convs=2)
    state = upstream(net)
    averages = {'ema_' + name.replace('.', '_'): x + 1 for name, x in state.items()}
    state = {prefix + name: x for name, x in (state | averages).items()}
    torch.save({'meta': {'epoch': 300}, 'state_dict': state}, tmp_path / 'l1.pth')
    overlay = {'file': str(tmp_path / 'l1.pth')}
    torch.manual_seed(1)
    loaded = timm.create_model(NAME, pretrained=True, stem_convs=2, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in loaded.state_dict().items())


def test_checkpoint_of_another_size(tmp_path):
    net = model()
    torch.save({'state_dict': upstream(net)}, tmp_path / 'w.pth')
    overlay = {'file': str(tmp_path / 'w.pth')}
    loaded = timm.create_model(NAME, pretrained=True, img_size=(64, 112), pretrained_cfg_overlay=overlay).eval()
    resized = copy.deepcopy(net)
    resized.set_input_size((64, 112))
    assert torch.equal(loaded.pos_embed, resized.pos_embed)


@pytest.mark.parametrize(
    'wrong',
    [{'patch_size': 7}, {'patch_size': 0}, {'d_conv': 4}, {'conv_blocks': (4,)}, {'global_pool': 'token'}],
    ids=str,
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} is .*allowed'):
        model(**wrong)


@pytest.mark.parametrize(('size', 'count'), [('l1', 7_551_656), ('l2', 26_145_832), ('l3', 50_956_456)])
def test_parameters(size, count):
    net = timm.create_model(f'plainmamba_{size}', device='meta')
    assert sum(p.numel() for p in net.parameters()) == count


def test_small_images():
    net = timm.create_model('plainmamba_nano', img_size=32, patch_size=4, num_classes=10)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10) and net.patch_embed.grid_size == (8, 8)
