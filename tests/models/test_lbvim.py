"""LBVim: the window of the local scan, the alternating direction, attention pooling, its checkpoints."""

import copy

import pytest
import timm
import torch
from timm.layers import set_scriptable
from torch import nn

from visionssm.models.lbvim import AttentionPool, window_by_length

NAME = 'test_lbvim'
POOLED = {'global_pool': 'map', 'pool_heads': 4}


def model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, **kwargs).eval()


def images(batch=2, size=(96, 96)):
    torch.manual_seed(1)
    return torch.randn(batch, 3, *size)


@pytest.mark.parametrize(
    ('steps', 'window'), [(1, 4), (80, 4), (128, 4), (129, 8), (196, 8), (256, 8), (257, 16), (1024, 16)]
)
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_rule(steps, window):
    assert window_by_length(steps) == window
    assert torch.jit.script(window_by_length)(steps) == window


def test_window_is_explicit():
    """36 tokens: the rule says 4."""
    x = images()
    by_rule, *fixed = (model(local_window=window)(x) for window in (None, 4, 8, 0))
    assert torch.equal(by_rule, fixed[0])
    assert not torch.allclose(by_rule, fixed[1], atol=1e-6) and not torch.allclose(by_rule, fixed[2], atol=1e-6)


@pytest.mark.parametrize('wrong', [-1, 2.5, True, 'auto'])
def test_wrong_window(wrong):
    with pytest.raises(ValueError, match='local_window is'):
        model(local_window=wrong)


SIZES = ((192, 208), (96, 112), (272, 256))  # 156, 42 and 272 tokens: all three windows


@pytest.mark.parametrize('window', [None, 6])
def test_one_graph_for_all_windows(window):
    torch._dynamo.reset()
    net = model(dynamic_img_size=True, local_window=window, depth=2)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for size in SIZES:
            torch.testing.assert_close(compiled(images(size=size)), net(images(size=size)), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


def test_export_for_all_windows():
    net = model(dynamic_img_size=True, depth=2)
    height, width = (32 * torch.export.Dim(axis, min=2, max=12) for axis in 'hw')
    with torch.no_grad():
        program = torch.export.export(net, (images(size=(96, 128)),), dynamic_shapes={'x': {2: height, 3: width}})
        for size in ((96, 96), (192, 192), (288, 320)):
            torch.testing.assert_close(
                program.module()(images(size=size)), net(images(size=size)), rtol=1e-4, atol=1e-5
            )


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_script_and_trace_for_all_windows():
    with set_scriptable(True):
        net = model(dynamic_img_size=True, depth=2)
    scripted, traced = torch.jit.script(net), torch.fx.symbolic_trace(net)
    with torch.no_grad():
        for size in SIZES:
            x = images(1, size)
            torch.testing.assert_close(scripted(x), net(x))
            torch.testing.assert_close(traced(x), net(x))  # eager takes paths that a traced graph does not


def test_every_other_block_walks_backwards():
    """As upstream has it: forward blocks, the stream turned around after each."""
    net = model()
    x, order = net._prepare(images(size=(96, 96)))
    forward = copy.deepcopy(net.blocks)
    for block in forward:
        block.mixer.reverse = False
        for direction in block.mixer.directions:
            direction.conv1d.backwards = False
    stream = x
    for block in forward:
        stream = block(stream, order).flip(1)
    expected = net.norm(stream)  # four blocks: it lies as it lay
    actual = net.forward_features(images(size=(96, 96)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert [block.mixer.reverse for block in net.blocks] == [False, True, False, True]


def test_directions():
    """A scan of more directions brings a parameter set for each."""
    net = model(scan='cross')
    assert net.scan_directions == 4 and len(net.blocks[0].mixer.directions) == 4
    assert net(images()).isfinite().all()


def test_attention_pool():
    torch.manual_seed(0)
    pool, x = AttentionPool(12, 3), torch.randn(2, 7, 12)
    nn.init.normal_(pool.kv.weight)
    k, v = pool.kv(x).chunk(2, -1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        weight = (k[..., part] @ pool.latent[0, 0, part] / 2).softmax(1)
        heads.append((weight.unsqueeze(2) * v[..., part]).sum(1))
    torch.testing.assert_close(pool(x), pool.norm(torch.cat(heads, 1)))
    with pytest.raises(ValueError, match='num_heads is 5'):
        AttentionPool(12, 5)


def test_attention_pool_in_the_model():
    net = model(**POOLED)
    x = images()
    with torch.no_grad():
        pooled = net.forward_head(net.forward_features(x), pre_logits=True)
        assert pooled.shape == (2, 128)
        net.reset_classifier(5)
        torch.testing.assert_close(net.forward_head(net.forward_features(x), pre_logits=True), pooled)
        net.reset_classifier(5, 'avg')
        assert isinstance(net.attn_pool, nn.Identity) and net(x).shape == (2, 5)
        net.to(torch.bfloat16).train().reset_classifier(5, 'map')
        assert net.attn_pool.training and net.attn_pool.latent.dtype == torch.bfloat16
        assert net(x.bfloat16()).shape == (2, 5)
    net.prune_intermediate_layers([1])
    assert isinstance(net.attn_pool, nn.Identity)


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_attention_pool_everywhere():
    torch._dynamo.reset()
    with set_scriptable(True):
        net = model(**POOLED)
    x = images()
    expected = net(x)
    torch.testing.assert_close(torch.jit.script(net)(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(net)(x), expected)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend='aot_eager')(x), expected)
    assert model(**POOLED, device='meta')(x.to('meta')).shape == (2, 1000)
    net.train()
    with torch.autocast('cpu', torch.bfloat16):
        y = net(x)
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def upstream(net):
    """The weights of `net` under upstream's names."""
    pooled = isinstance(net.attn_pool, AttentionPool)
    state = {}
    for name, x in net.state_dict().items():
        name = name.replace('blocks.', 'layers.').replace('.directions.0.', '.')
        if name.startswith('norm.'):
            name = name.replace('norm.', 'norm_f.')
        if pooled:
            name = name.replace('head.', 'head.1.').replace('attn_pool.norm.', 'head.0.post_norm.')
        state[name.replace('attn_pool.', 'head.0.')] = x
    return state


@pytest.mark.parametrize('kwargs', [{}, POOLED], ids=['mean', 'attention'])
def test_checkpoint(kwargs, tmp_path):
    net = model(**kwargs)
    torch.save({'model': upstream(net), 'epoch': 299}, tmp_path / 'w.pth')
    overlay = {'file': str(tmp_path / 'w.pth')}
    torch.manual_seed(1)
    loaded = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in loaded.state_dict().items())
    other = {**kwargs, 'img_size': (64, 112), 'num_classes': 0, 'global_pool': ''}
    features = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **other).eval()
    assert features(images(size=(64, 112))).shape == (2, 28, 128)
    net.set_input_size((64, 112))
    torch.testing.assert_close(features(images(size=(64, 112))), net.forward_features(images(size=(64, 112))))


def test_parameters():
    counts = {'tiny': 6_419_560, '300': 14_897_200, 'small': 23_897_320, '528': 44_823_448}
    for size, count in counts.items():
        net = timm.create_model(f'lbvim_{size}_patch16_224', device='meta')
        assert sum(p.numel() for p in net.parameters()) == count
    assert net.no_weight_decay() == {'pos_embed'}
