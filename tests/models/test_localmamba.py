"""What is LocalMamba's own: the contract is in test_models.py, a golden in test_goldens.py."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch.nn import functional as F

import visionssm  # noqa: F401  registers the models
from visionssm.models.localvim import insert_step
from visionssm.scans import get_layer_scans, get_scan

COUNTS = {
    'localvim_tiny_patch16_224': 7_994_152,
    'localvim_tiny_midcls_patch16_224': 7_994_536,
    'localvim_small_patch16_224': 27_783_784,
    'localvmamba_tiny': 25_527_160,
    'localvmamba_small': 49_748_536,
}


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


@pytest.mark.parametrize('name', COUNTS)
def test_published_orders(name):
    """As many as blocks, of four directions each, on whole windows and on those that zeros fill."""
    model = create(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    mixers = [module for module in model.modules() if hasattr(module, 'scan') and hasattr(module, 'in_proj')]
    orders = get_layer_scans(model.scan, len(mixers))
    assert [order.to_json() for order in orders] == [mixer.scan for mixer in mixers]
    for order in orders:
        assert order.directions == len(set(order.parts)) == 4
        assert order.steps(14, 14) == 196 and order.table(14, 14).shape == order.table(7, 14).shape[:1] + (196,)
    assert (len(set(orders)) == 1) == (name == 'localvim_small_patch16_224')


def test_first_and_last_layer():
    """Of LocalVim-T and LocalVMamba-S, written out."""
    grid = torch.arange(16).reshape(4, 4)
    down, windows = grid.T.flatten(), grid.unfold(0, 2, 2).unfold(1, 2, 2).flatten()
    orders = get_layer_scans(create('localvim_tiny_patch16_224', device='meta').scan, 20)
    tables = [order.table(4, 4)[:, :16] for order in orders]
    assert (tables[0][:2] == torch.stack([grid.flatten(), down.flip(0)]).numpy()).all()
    assert (tables[19] == torch.stack([down, down.flip(0), windows, windows.flip(0)]).numpy()).all()
    last = get_layer_scans(create('localvmamba_small', device='meta').scan, 33)[-1].table(3, 3)
    assert last[3].tolist() == last[2][::-1].tolist() and (last == 9).sum(1).tolist() == [40, 40, 40, 40]


@pytest.mark.parametrize('name', ['test_localvim', 'test_localvmamba'])
def test_a_scan_per_layer(name, tmp_path):
    model = create(name).eval()
    layers = len(json.loads(model.scan))
    x = torch.randn(1, 3, 96, 96)
    scans = ['cross', *['snake'] * (layers - 1)]
    y = model(x)
    model.set_scan(scans)
    assert [spec['name'] for spec in json.loads(model.scan)] == scans and not torch.equal(model(x), y)
    other = create(name, scan=json.dumps(scans)).eval()
    assert torch.equal(other(x), model(x)) and other.scan == model.scan
    for wrong, message in [(scans[1:], f'{layers - 1} scans are given'), (['raster'] * layers, '1 directions')]:
        with pytest.raises(ValueError, match=message):
            model.set_scan(wrong)
    with pytest.raises(ValueError, match='layers have 1 and 4 directions'):
        create(name, scan=['raster', *scans[1:]])
    save_for_hf(model, tmp_path, model_args={'scan': model.scan})
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), model(x))


def test_block_of_localvmamba():
    """Directions one by one, each weighed by the mean of its normed tokens, then added up; zero tokens have no say."""
    mixer = create('test_localvmamba').stages[0].blocks[0].mixer.double().eval()
    order = get_scan({'name': 'list', 'of': ['column', *[{'name': 'local', 'window': 2, 'pad': 'zero'}] * 3]})
    mixer.set_scan(order)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, -1)
    u = F.silu(mixer.conv(u.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
    total, ssm, gate = 0, mixer.ssm, mixer.direction_gate
    for k, walk in enumerate(order.table(3, 5)):
        state, y = torch.zeros(2, 32, 4, dtype=torch.float64), torch.zeros_like(u)
        for token in walk.tolist():
            step = u[:, token] if token < 15 else torch.zeros_like(u[:, 0])
            dt, B, C = (step @ ssm.x_proj_weight[k].T).split([1, 4, 4], 1)
            delta = F.softplus(dt @ ssm.dt_proj_weight[k].T + ssm.dt_proj_bias[k])
            state = state * torch.exp(-delta[..., None] * ssm.A_log[k].exp()) + (delta * step)[..., None] * B[:, None]
            if token < 15:
                y[:, token] = (state * C[:, None]).sum(2) + ssm.D[k] * step
        weights = gate.fc2(F.gelu(gate.fc1(gate.norm(y).mean(1)))).sigmoid()
        total = total + y * weights[:, None]
    expected = mixer.out_proj(mixer.norm(total).reshape(2, 3, 5, 32) * F.silu(z))
    torch.testing.assert_close(mixer(x), expected)


def test_class_token():
    """Every walk meets it at the step that is its place; rows of other orders move behind it."""
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert insert_step(order, 2).tolist() == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    model = create('localvim_tiny_patch16_224', depth=2, scan='list', class_token=True)
    assert model.rope is None and model.pos_embed.shape[1] == 197 and model.global_pool == 'token'
    assert create('localvim_tiny_patch16_224', device='meta').rope is not None


def upstream_state(model):
    """Weights by the authors' names, with the tables that they keep."""
    state = {}
    for name, x in model.state_dict().items():
        name = name.replace('blocks.', 'layers.')
        name = 'norm_f.weight' if name == 'norm.weight' else name
        head, _, rest = name.partition('.directions.')
        if rest:
            index, first, *more = rest.split('.')
            name = '.'.join([head, f'{first}_{index}', *more])
        for ours, theirs in (('norm', 'norm'), ('fc1', 'global_reduce'), ('fc2', 'channel_select')):
            name = name.replace(f'direction_gate.{ours}', f'attn.{theirs}')
        state[name] = x
    side = torch.arange(14.0)
    angles = side[:, None] * 10000 ** (-torch.arange(12) / 12)
    angles = torch.cat([angles[:, None].expand(14, 14, 12), angles[None].expand(14, 14, 12)], 2).repeat_interleave(2, 2)
    return {**state, 'rope.freqs_cos': angles.cos().flatten(0, 1), 'rope.freqs_sin': angles.sin().flatten(0, 1)}


def test_tables_of_angles(tmp_path):
    """Those of a file are the model's own, or they are reported."""
    model = create('test_localvim', img_size=224).eval()
    state, file = upstream_state(model), tmp_path / 'w.ckpt'
    assert 'layers.0.mixer.A_log_3' in state and 'layers.0.mixer.attn.global_reduce.bias' in state

    def load():
        torch.save({'state_dict': state}, file)
        return create('test_localvim', img_size=224, pretrained=True, pretrained_cfg_overlay={'file': str(file)}).eval()

    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(load()(x), model(x))
    state['rope.freqs_cos'] = state['rope.freqs_cos'].roll(1, 0)
    with pytest.raises(ValueError, match=r'rope\.freqs_cos'):
        load()


def test_names_of_localvmamba():
    model = create('test_localvmamba')
    names = {
        'layers.0.blocks.0.op.multi_scan.attn.global_reduce.bias': 'stages.0.blocks.0.mixer.direction_gate.fc1.bias',
        'layers.2.blocks.0.op.multi_scan.attn.norm.bias': 'stages.2.blocks.0.mixer.direction_gate.norm.bias',
        'backbone.layers.0.blocks.0.op.x_proj_weight': 'stages.0.blocks.0.mixer.ssm.x_proj_weight',
        'layers.0.blocks.0.norm.weight': 'stages.0.blocks.0.norm1.weight',
        'layers.0.downsample.reduction.weight': 'stages.1.downsample.reduction.weight',
        'classifier.head.bias': 'head.fc.bias',
    }
    state = model.state_dict()
    upstream = {theirs: state[ours] for theirs, ours in names.items()}
    assert list(model.checkpoint_filter_fn(upstream, model)) == list(names.values())
