"""What detectors and segmenters take: forms of the models, the ViT-Adapter, pyramids, upstream's names of all that."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat, set_scriptable
from timm.models import group_parameters
from torch import nn

from visionssm.layers import ResamplePyramid, SimplePyramid
from visionssm.models.adapter import DeformableAttention, PlainMambaAdapter
from visionssm.models.dense import DenseModel, dense_state_dict
from visionssm.weights.checkpoint import check_fit

HERE = Path(__file__).resolve().parent


def load_golden():
    spec = importlib.util.spec_from_file_location('golden', HERE.parent / 'goldens' / 'golden.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = load_golden()
ANY_SIZE = {'img_size': 96, 'dynamic_img_size': True}


def model(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def images(*size):
    torch.manual_seed(1)
    return torch.randn(1, 3, *size)


@pytest.fixture(scope='module')
def positions():
    return golden.load('vim_pos_embed_interp', HERE)[1]


@pytest.mark.parametrize('rows', [8, 32, 50])
def test_position_embeddings_of_another_grid(positions, rows):
    size = (rows, {8: 10, 32: 32, 50: 84}[rows])
    source = torch.from_numpy(golden.fill_tensor('pos_embed', (1, 196, 192)))
    ours = model('test_lbvim').resample_pos_embed(source, size, (14, 14))
    expected = positions[f'plain_lb_14_to_{size[0]}x{size[1]}']
    assert np.abs(ours[0, :: 1 if rows == 8 else 7, :4].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(('key', 'side'), [('finetune_14_to_27', 27), ('seg_cls_14_to_32', 32)])
def test_position_embeddings_with_a_class_row(positions, key, side):
    """Upstream takes row 0 for the class row and keeps the real one in the grid; we cut the one in the middle."""
    source = torch.from_numpy(golden.fill_tensor('pos_embed', (1, 197, 192)))
    net = model('test_vim')
    middle, size = side * side // 2, (side, side)
    theirs = torch.roll(source, -1, 1)[:, [*range(98), 196, *range(98, 196)]]  # as if their row 0 stood in the middle
    ours = net.resample_pos_embed(theirs, size, (14, 14))
    ours = torch.cat([ours[:, middle : middle + 1], ours[:, :middle], ours[:, middle + 1 :]], 1)
    assert np.abs(ours[0, ::3, :8].numpy() - positions[key]).max() < 1e-6
    right = net.resample_pos_embed(source, size, (14, 14))
    assert torch.equal(right[:, middle], source[:, 98])


def test_rotary_table(positions):
    net = model('test_vim', embed_dim=192, depth=1, rotary=True, class_token=False)
    table = net.rope.get_embed([16, 16])
    sin, cos = table.chunk(2, -1)
    x = torch.from_numpy(golden.fill_tensor('rope_in', (1, 256, 192)))
    turned = apply_rot_embed_cat(x, table)[0]
    for ours, key in ((cos, 'cos'), (sin, 'sin'), (turned, 'out')):
        assert np.abs(ours[::5, ::3].numpy() - positions[f'rope_{key}_192_pt14_ft16']).max() < 1e-6
    # an odd count: upstream leaves token 0, which it takes for the class token, as it is
    x = torch.from_numpy(golden.fill_tensor('rope_in', (1, 257, 192)))
    turned = torch.cat([x[:, :1], apply_rot_embed_cat(x[:, 1:], table)], 1)[0]
    assert np.abs(turned[::5, ::3].numpy() - positions['rope_out_odd_192_pt14_ft16']).max() < 1e-6


def test_rotary_leaves_the_class_token():
    net = model('test_vim', rotary=True, **ANY_SIZE)
    x, (_, table) = net._prepare(images(80, 112))
    assert table.shape == (36, 128) and x.shape == (1, 36, 64)
    sin, cos = table[17].chunk(2)
    assert not sin.any() and (cos == 1).all()
    assert not torch.equal(table[16], table[18])


@pytest.mark.parametrize('rotary', [False, True])
@pytest.mark.parametrize('class_token', [False, True])
def test_stream_and_mixer(rotary, class_token):
    """Stream after a block: stream before it and what the mixer says, turned unless it is the last block's."""
    options = {'class_token': class_token, 'rotary': rotary, **ANY_SIZE}
    nets = [model('test_vim', features=features, **options) for features in ('stream', 'mixer')]
    x = images(48, 80)
    stream, mixer = (net.forward_intermediates(x, output_fmt='NLC', intermediates_only=True) for net in nets)
    tables = nets[0]._prepare(x)[1][1:]
    for i in range(1, 4):
        expected = stream[i - 1] + mixer[i]
        if rotary and i < 3:
            table = tables[0]
            if class_token:
                table = torch.cat([table[:7], table[8:]])
            expected = apply_rot_embed_cat(expected, table)
        assert torch.allclose(stream[i], expected, atol=1e-5)


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize(
    ('name', 'options'),
    [('test_vim', {'class_token': False, 'rotary': True}), ('test_lbvim', {'norm_layer': 'layernorm'})],
)
def test_forms_are_models(name, options):
    """They classify, train, checkpoint, script and trace as the classifiers do."""
    x = images(96, 96)
    with set_scriptable(True):
        net = model(name, depth=2, **options, **ANY_SIZE)
    y = net(x)
    assert torch.equal(torch.jit.script(net)(x), y) and torch.equal(torch.fx.symbolic_trace(net)(x), y)
    assert torch.equal(net.bfloat16()(x.bfloat16()).isfinite(), torch.ones_like(y, dtype=torch.bool))
    again = copy.deepcopy(net).float()
    again.set_grad_checkpointing()
    again.train()(x).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('test_vim', {'class_token': False, 'global_pool': 'token'}, 'global_pool is'),
        ('test_vim', {'features': 'hidden'}, 'features is'),
        ('test_vim', {'rotary': True, 'embed_dim': 66}, 'embed_dim is'),
        ('test_lbvim', {'norm_layer': 'batchnorm'}, 'norm_layer is'),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        model(name, **options)


def test_classifier_into_a_model_without_class_token():
    source = model('test_vim', img_size=96)
    net = model('test_vim', img_size=96, class_token=False, num_classes=0)
    state = dense_state_dict(source.state_dict(), DenseModel(net, [-1]))
    assert 'model.cls_token' not in state
    assert torch.equal(state['model.pos_embed'][:, 18], source.pos_embed[:, 19])
    assert torch.equal(state['model.pos_embed'][:, 17], source.pos_embed[:, 17])


def test_rmsnorm_weights_into_layernorm():
    from visionssm.models.lbvim import checkpoint_filter_fn

    net = model('test_lbvim', norm_layer='layernorm')
    nn.init.ones_(net.blocks[1].norm.bias)
    net.load_state_dict(checkpoint_filter_fn(model('test_lbvim').state_dict(), net))
    assert not net.blocks[1].norm.bias.any() and not net.norm.bias.any()


@pytest.mark.parametrize('name', ['test_vim', 'test_lbvim', 'test_plainmamba', 'test_vmamba'])
def test_maps(name):
    net = model(name, **({} if name in ('test_plainmamba', 'test_vmamba') else ANY_SIZE))
    dense = DenseModel(net, (0, 2), out_norm=True, out_channels=24).eval()
    maps = dense(images(64, 96))
    assert dense.channels == [24, 24]
    assert [y.shape for y in maps] == [(1, 24, 64 // r, 96 // r) for r in dense.reductions]
    assert all(y.is_contiguous() for y in maps)
    assert all(abs(y.mean(1)).max() < 1e-5 for y in maps)  # fresh norms
    assert any(name.startswith('norm.') for name in dense.removed)
    for name, p in dense.named_parameters():
        assert p.requires_grad, name
    sum(y.square().sum() for y in maps).backward()
    assert not [name for name, p in dense.named_parameters() if p.grad is None]


@pytest.mark.parametrize('wrong', [(4,), (1, 0), (0, 0), ()])
def test_wrong_levels(wrong):
    with pytest.raises(ValueError, match='level 4|out_indices is'):
        DenseModel(model('test_plainmamba'), wrong)


def weights_of(name):
    meta, _ = golden.load(name, HERE.parent / 'goldens')
    norms = {name: torch.zeros(shape) for name, shape, _ in meta.get('backbone_extra_state', [])}
    return {**golden.upstream_state_dict(meta), **norms}


@pytest.mark.parametrize(
    ('fixture', 'name', 'indices'),
    [
        ('vmamba_tiny_s1l8', 'vmamba_tiny_s1l8', range(4)),
        ('vmamba_vanilla_tiny', 'vmamba_vanilla_tiny', range(4)),
        ('msvmamba_nano', 'msvmamba_nano', range(4)),
        ('plainmamba_l1_seg', 'plainmamba_l1', (5, 11, 17, 23)),
        ('lbvim_tiny_seg', 'lbvim_tiny_patch16_224', (5, 11, 17, 23)),
    ],
)
def test_upstream_names(fixture, name, indices):
    """Every weight of an upstream detector's or segmenter's backbone has its place, and no place is left."""
    options = {'norm_layer': 'layernorm'} if 'lbvim' in name else {}
    with torch.device('meta'):
        dense = DenseModel(timm.create_model(name, num_classes=0, **options), indices, out_norm=True)
    state = dense_state_dict(weights_of(fixture), dense)
    heads = tuple(f'model.{head}.' for head in ('head', 'norm'))  # VMamba's detectors keep the classifier's
    check_fit({name: x for name, x in state.items() if not name.startswith(heads)}, dense)
    assert dense_state_dict(state, dense) is state  # ours already


def test_upstream_projections():
    dense = DenseModel(model('test_lbvim'), (1, 3), out_norm=True, out_channels=24)
    weight = torch.zeros(24, 128)
    assert dense_state_dict({'out_map_1.weight': weight}, dense) == {'outproj3.weight': weight}


def test_adapter_takes_any_size():
    net = PlainMambaAdapter(model('test_plainmamba'), num_heads=4, groups=2, drop_path_rate=0.1).eval()
    dense = DenseModel(net, range(4))
    for block in net.interactions:
        nn.init.ones_(block.injector.gamma)
    x = images(70, 107)
    maps = dense(x)
    assert [tuple(y.shape[-2:]) for y in maps] == [(18, 27), (9, 14), (5, 7), (3, 4)]
    dense.model.set_grad_checkpointing()
    sum((y * torch.randn_like(y)).sum() for y in dense(x)).backward()
    assert not [name for name, p in dense.named_parameters() if p.grad is None]
    with torch.autocast('cpu', torch.bfloat16):
        assert all(y.isfinite().all() for y in dense(x))
    groups = group_parameters(net, net.group_matcher(coarse=True))  # stem, four blocks, what is added
    assert len(groups) == 6 and not [name for name in groups[5] if name.startswith('model.')]


@torch.no_grad()
def test_deformable_attention():
    """Against a loop over queries, heads, maps and points that reads pixels one by one."""
    torch.manual_seed(0)
    heads, points, sizes = 2, 3, [(4, 5), (2, 3)]
    net = DeformableAttention(8, heads, 2, points).double()
    nn.init.normal_(net.attention_weights.weight)
    query, value, places = torch.randn(1, 3, 8), torch.randn(1, 26, 8), torch.rand(3, 2)
    query, value, places = query.double(), value.double(), places.double()
    offsets = net.sampling_offsets(query)[0].view(3, heads, 2, points, 2)
    weights = net.attention_weights(query)[0].view(3, heads, -1).softmax(-1).view(3, heads, 2, points)
    tokens = net.value_proj(value)[0].view(26, heads, 4)
    out = torch.zeros(3, heads, 4).double()
    for q, h, level, p in np.ndindex(3, heads, 2, points):
        height, width = sizes[level]
        grid = tokens[20 * level : 20 * level + height * width, h].view(height, width, 4)
        x = float(places[q, 0] * width + offsets[q, h, level, p, 0]) - 0.5
        y = float(places[q, 1] * height + offsets[q, h, level, p, 1]) - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for row, col in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= row < height and 0 <= col < width:
                share = (1 - abs(y - row)) * (1 - abs(x - col))
                out[q, h] += weights[q, h, level, p] * share * grid[row, col]
    expected = net.output_proj(out.flatten(1))
    assert torch.allclose(net(query, places, value, sizes)[0], expected, atol=1e-12)


def test_wrong_adapters():
    with pytest.raises(TypeError, match='not for Vim'):
        PlainMambaAdapter(model('test_vim'))
    with pytest.raises(ValueError, match='groups is 3'):
        PlainMambaAdapter(model('test_plainmamba'), num_heads=4, groups=3)
    with pytest.raises(ValueError, match='num_heads is 6'):
        PlainMambaAdapter(model('test_plainmamba'), num_heads=6)


def test_pyramids():
    x = torch.randn(1, 16, 5, 7)
    sizes = [tuple(y.shape[1:]) for y in ResamplePyramid(16)([x] * 4)]
    assert sizes == [(16, 20, 28), (16, 10, 14), (16, 5, 7), (16, 3, 4)]
    sizes = [tuple(y.shape[1:]) for y in SimplePyramid(16, 8)([x])]
    assert sizes == [(8, 20, 28), (8, 10, 14), (8, 5, 7), (8, 3, 4), (8, 2, 2)]
    with pytest.raises(ValueError, match='ResamplePyramid takes 4 maps, not 1'):
        ResamplePyramid(16)([x])
    with pytest.raises(ValueError, match='SimplePyramid takes 1 map, not 2'):
        SimplePyramid(16)([x, x])


@pytest.mark.parametrize('name', ['test_vmamba', 'test_vim', 'test_mambaout'])
def test_weights_of_a_subclass(name):
    """Written outside the package, as users do."""
    torch.manual_seed(0)
    plain = timm.create_model(name)
    weights = plain.state_dict()
    plain.__class__ = type('Mine', (type(plain),), {'__module__': __name__})
    dense = DenseModel(plain, [0, 1])
    found = dense_state_dict(weights, dense)
    assert all(torch.equal(x, found[key]) for key, x in dense.state_dict().items())
