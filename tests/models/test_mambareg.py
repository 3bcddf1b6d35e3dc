"""Class tokens and registers among patches, of Vim's kin; the contract of all models is in test_models.py."""

import pytest
import timm
import torch

import visionssm  # noqa: F401  registers the models
from visionssm.models.tokens import TokenMamba, insert_into_walks, insert_tokens, resample_pos_embed, take_tokens
from visionssm.scans import get_scan


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_mambareg', **kwargs).eval()


@pytest.mark.parametrize(
    ('patches', 'count', 'first', 'places'),
    [
        (196, 12, False, [15 * (i + 1) + i for i in range(12)]),
        (196, 16, False, [11 * (i + 1) + i for i in range(16)]),
        (9, 1, False, [4]),
        (3, 4, False, [0, 1, 2, 3]),
        (5, 1, True, [0]),
    ],
)
def test_places(patches, count, first, places):
    """Register i at (i + 1) L + i, L = M // (n + 1)."""
    x, tokens = torch.randn(2, patches, 3), torch.randn(2, count, 3)
    stream = insert_tokens(x, tokens, first)
    others = [i for i in range(patches + count) if i not in places]
    assert torch.equal(stream[:, places], tokens) and torch.equal(stream[:, others], x)
    for got, expected in zip(take_tokens(stream, count, first), (x, tokens), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize('first', [False, True])
@pytest.mark.parametrize('scan', ['bidirectional', 'cross', {'name': 'local', 'window': 2, 'pad': 'zero'}], ids=str)
def test_walks(scan, first):
    """Patches in their order; tokens in theirs, evenly along the walk, and backwards where it is another backwards."""
    order = get_scan(scan, 2)
    table = torch.from_numpy(order.table(3, 5).copy())
    patches, steps = 15, table.shape[1]
    mirrored = [any(torch.equal(table[k], table[j].flip(0)) for j in range(k)) for k in range(len(table))]
    walks = insert_into_walks(table, patches, 2, first, mirrored)
    names = insert_tokens(torch.arange(patches)[None, :, None], torch.tensor([[[-1], [-2]]]), first).flatten()
    names = torch.cat([names, torch.full((1,), patches)])  # behind all the zero token
    for walk, plain, backwards in zip(names[walks], table, mirrored, strict=True):
        expected = plain.flip(0) if backwards else plain
        expected = insert_tokens(expected[None, :, None], torch.tensor([[[-1], [-2]]]), first).flatten()
        assert torch.equal(walk.flip(0) if backwards else walk, expected.to(walk.dtype))
    assert walks.shape == (len(table), steps + 2)


def test_raster_walk_is_the_sequence():
    model = create()
    _, order = model._prepare(torch.zeros(1, 3, 96, 96))
    sequence = torch.arange(40, dtype=order.dtype)
    assert torch.equal(order, torch.stack([sequence, sequence.flip(0)]))


def test_positions_before_registers():
    """Patches have theirs before registers come between them; registers stay as they are at any size."""
    model = create(dynamic_img_size=True)
    for size in ((96, 96), (64, 80)):
        x = torch.randn(1, 3, *size)
        stream, _ = model._prepare(x)
        patches, registers = take_tokens(stream, 4)
        rows = resample_pos_embed(model.pos_embed, [size[0] // 16, size[1] // 16], [6, 6], 0)
        torch.testing.assert_close(patches, model.patch_embed(x).flatten(1, 2) + rows)
        assert torch.equal(registers, model.cls_token + model.pos_embed_cls)


def test_class_rows_stay():
    rows = torch.randn(1, 38, 4)
    patches, own = take_tokens(resample_pos_embed(rows, [3, 5], [6, 6], 2), 2)
    assert torch.equal(own, take_tokens(rows, 2)[1]) and patches.shape == (1, 15, 4)


def test_classifier():
    """Every register in fewer channels, side by side, normed together."""
    model = create().double()
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    tokens = model.forward_features(x)[:, [7, 15, 23, 31]]
    y = (tokens @ model.neck.fc.weight.T).flatten(1)
    y = y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(model(x), model.head(y))
    weight = model.neck.fc.weight
    model.reset_classifier(3)
    assert model.neck.fc.weight is weight and model.head.in_features == 128
    model.reset_classifier(3, 'avg')
    assert model.head.in_features == 64 and not list(model.neck.parameters())
    model.reset_classifier(3, 'token')
    assert model.head.in_features == 128 and model(x).shape == (2, 3)
    assert timm.create_model('mambareg_tiny_patch16_224', device='meta').head.in_features == 12 * 192


def test_checkpoint_for_maps():
    """A model that pools otherwise takes the weights of a classifier without its neck."""
    model = create(num_classes=0, global_pool='')
    state = create().state_dict()
    own = model.checkpoint_filter_fn({name: x for name, x in state.items() if 'head' not in name}, model)
    model.load_state_dict(own)
    upstream = {'norm_f.weight': state['norm.weight'], 'neck.weight': state['neck.fc.weight']}
    upstream['norm_neck.weight'] = state['neck.norm.weight']
    assert set(create().checkpoint_filter_fn(upstream, create())) == {
        'norm.weight',
        'neck.fc.weight',
        'neck.norm.weight',
    }


def test_parameters():
    """As counted upstream."""
    model = timm.create_model('mambareg_tiny_patch16_224', device='meta')
    assert sum(p.numel() for p in model.parameters()) == 9_264_232
    assert model.no_weight_decay() == {'pos_embed', 'cls_token', 'pos_embed_cls'}


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'num_cls_tokens': -1}, 'num_cls_tokens is -1; allowed are integers from 0'),
        ({'cls_position': 'last'}, "cls_position is 'last'; allowed are spread and first"),
        ({'cls_reduce': 5}, 'cls_reduce is 5; allowed are divisors of the 192 channels'),
        ({'init': 'zero'}, "init is 'zero'; allowed are mamba and linear"),
        ({'num_cls_tokens': 0, 'cls_pos_embed': True}, 'cls_pos_embed is True'),
        ({'num_cls_tokens': 0}, "global_pool is 'token'; allowed are 'avg', ''"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        TokenMamba(device='meta', **wrong)
