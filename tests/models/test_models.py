"""timm's contract over every registered model of ours: new families are tested without being named here."""

import io
import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.layers import set_scriptable
from timm.models import create_feature_extractor, save_for_hf
from timm.optim import param_groups_weight_decay
from torch import nn

import visionssm  # noqa: F401  registers the models
from visionssm.layers import ConvDownsample, ScanningModule
from visionssm.models import a2mamba
from visionssm.models.pyramid import Pyramid
from visionssm.models.vssm import PatchMerge
from visionssm.ops import use_backend
from visionssm.scans import get_scan, list_scans
from visionssm.weights.published import FAMILIES

NAMES = [name for family in FAMILIES.values() if not family.borrowed for name in family.models]
SMALL = [name for name in NAMES if name.startswith('test_')]
SCANNING = [name for name in SMALL if hasattr(timm.create_model(name, device='meta'), 'scan')]
# those whose scans walk whole maps, not windows of a fixed size
WHOLE = [name for name in SCANNING if not hasattr(timm.create_model(name, device='meta'), 'windows')]

small = pytest.mark.parametrize('name', SMALL)
scanning = pytest.mark.parametrize('name', SCANNING)


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def fixed(model):
    return model.pretrained_cfg.get('fixed_input_size', False)


def images(model, batch=2, size=None, chans=3):
    torch.manual_seed(1)
    height, width = model.pretrained_cfg['input_size'][-2:] if size is None else size
    return torch.randn(batch, chans, height, width)


def any_size(name, **kwargs):
    """A model that takes every size."""
    return create(name, **({'dynamic_img_size': True} if fixed(create(name, device='meta')) else {}), **kwargs)


def classifiers(model):
    """Names of the classifiers; with a distillation head there are two, as in timm."""
    names = model.pretrained_cfg['classifier']
    return [names] if isinstance(names, str) else list(names)


def enlarged(model, *sizes):
    """Sizes at which the last map has as many pixels as one of stride 32 has at these."""
    scale = max(1, model.feature_info[-1]['reduction'] // 32)
    return [tuple(scale * side for side in size) for size in sizes]


def reductions(model, size):
    return [tuple(-(-side // info['reduction']) for side in size) for info in model.feature_info]


# every registered model, without weights


@pytest.mark.parametrize('name', NAMES)
def test_config(name):
    model = create(name, device='meta')
    cfg = model.pretrained_cfg
    assert all(p.device.type == 'meta' for p in [*model.parameters(), *model.buffers()])
    state = model.state_dict()
    assert all(f'{key}.weight' in state for key in classifiers(model))
    assert cfg['first_conv'] + '.weight' in state
    assert model.num_features > 0 and model.head_hidden_size > 0 and model.num_classes == 1000 and model.in_chans == 3
    assert {'license', 'origin_url', 'paper_ids', 'mean', 'std', 'crop_pct', 'interpolation'} <= cfg.keys()
    if any(cfg.get(key) for key in ('url', 'hf_hub_id')):
        assert 'reported by the authors' in cfg['notes'][0]
        assert timm.models.is_model_pretrained(name)
    modules = dict(model.named_modules())
    assert all(info['module'] in modules for info in model.feature_info)
    assert len(name) < 40
    if name.startswith('test_'):
        assert sum(p.numel() for p in model.parameters()) < 1e6


@pytest.mark.parametrize('name', NAMES)
def test_groups(name):
    """Every parameter belongs to one group; the exemptions from weight decay are names of parameters."""
    model = create(name, device='meta')
    names = {key for key, _ in model.named_parameters()}
    assert set(model.no_weight_decay()) <= names
    assert sum(
        len(g['params']) for g in param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    ) == len(names)
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert len(groups) == len(names)


# small models, with weights


@small
def test_forward(name):
    model = create(name).eval()
    x = images(model)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (2, 1000) and y.isfinite().all()
        assert torch.equal(y, model(x))
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([model(x[:1]), model(x[1:])]), y, rtol=1e-4, atol=1e-5)


@small
def test_backward(name):
    model = create(name, num_classes=42, drop_path_rate=0.1, drop_rate=0.1).train()
    y = model(images(model))
    assert y.shape[-1] == 42
    y.square().mean().backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize('name', SMALL)
def test_no_images(name):
    model = create(name).eval()
    assert model(images(model)[:0]).shape == (0, 1000)


@small
@pytest.mark.parametrize('size', [(64, 96), (75, 53), (32, 33)], ids=str)
def test_any_size(name, size):
    model = any_size(name).eval()
    x = images(model, size=size)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model(x).shape == (2, 1000)
    assert all(y.shape[1] == info['num_chs'] for y, info in zip(maps, model.feature_info, strict=True))


@small
def test_too_small(name):
    model = any_size(name)
    minimum = model.get_submodule(model.embedding).least
    assert minimum == model.pretrained_cfg.get('min_input_size', (3, minimum))[-1]
    if minimum == 1:
        assert model(images(model, size=(1, 1))).shape == (2, 1000)
    else:
        with pytest.raises(ValueError, match=rf'1x40; the least is {minimum}x{minimum}'):
            model(images(model, size=(1, 40)))


@small
def test_wrong_size(name):
    model = create(name)
    if not fixed(model):
        pytest.skip('takes any size')
    with pytest.raises(ValueError, match='dynamic_img_size=True'):
        model(images(model, size=(64, 96)))


@small
def test_input_size(name):
    model = create(name).eval()
    if not fixed(model):
        pytest.skip('takes any size')
    x = images(model, size=(64, 128))
    dynamic = create(name, dynamic_img_size=True).eval()
    dynamic.load_state_dict(model.state_dict())
    model.set_input_size((64, 128))
    assert isinstance(model.pos_embed, nn.Parameter)
    torch.testing.assert_close(model(x), dynamic(x), rtol=1e-5, atol=1e-5)
    assert create(name, img_size=(64, 128))(x).shape == (2, 1000)


@small
def test_heads(name):
    model = create(name).eval()
    x = images(model)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[-1] == model.num_features
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(features), model(x))
        heads = model.get_classifier()
        for head in heads if isinstance(heads, tuple) else (heads,):
            assert head.weight.shape == (1000, model.head_hidden_size)
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pre_logits)
        model.train().reset_classifier(7)
        assert model.training and all(m.training for m in model.modules()) and model.num_classes == 7
        assert model.eval()(x).shape == (2, 7)
        model.reset_classifier(0, '')
        assert not any(m.training for m in model.modules())
        assert torch.equal(model(x), features)
        assert create(name, num_classes=0, global_pool='').eval()(x).shape == features.shape
        model.to(torch.bfloat16).reset_classifier(5, 'avg')
        assert model(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises((ValueError, AssertionError)):
        create(name, global_pool='sideways')


@small
def test_in_chans(name):
    model = create(name, in_chans=1)
    assert model(images(model, chans=1)).shape == (2, 1000)


@small
def test_intermediates(name):
    model = create(name).eval()
    x = images(model)
    with torch.no_grad():
        expected = model.forward_features(x)
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, expected)
        assert len(maps) == len(model.feature_info)
        for y, info, size in zip(maps, model.feature_info, reductions(model, x.shape[-2:]), strict=True):
            assert y.shape == (2, info['num_chs'], *size)
        nhwc = model.forward_intermediates(x, indices=[0], output_fmt='NHWC', intermediates_only=True, stop_early=True)
        torch.testing.assert_close(nhwc[0].permute(0, 3, 1, 2), maps[0])
        last = model.forward_intermediates(x, indices=2, intermediates_only=True)
        assert len(last) == 2 and torch.equal(last[1], maps[-1])
        model.set_grad_checkpointing()
        torch.testing.assert_close(model.forward_intermediates(x)[1][-1], maps[-1])
    for wrong in ({'output_fmt': 'CHWN'}, {'indices': [99]}, {'indices': 99}):
        with pytest.raises(ValueError):
            model.forward_intermediates(x, **wrong)


@small
def test_features(name):
    x = images(create(name, device='meta'))
    plain = create(name).eval()
    model = create(name, features_only=True).eval()
    channels, factors = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    maps = model(x)
    assert [y.shape[1] for y in maps] == channels
    assert [x.shape[-1] // y.shape[-1] for y in maps] == factors
    two = create(name, features_only=True, out_indices=(0, 2)).eval()(x)
    expected = plain.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    torch.testing.assert_close(two, expected)


PYRAMIDS = [name for name in SMALL if isinstance(timm.create_model(name, device='meta'), Pyramid)]


@pytest.mark.parametrize('name', PYRAMIDS)
@pytest.mark.parametrize('level', [0, 1])
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_output_stride(name, level):
    """As timm's ConvNeXt: dilated instead of halved, with the same weights."""
    with set_scriptable(True):
        plain = create(name)
        stride = plain.output_strides[level]
        model = create(name, output_stride=stride)
    model.load_state_dict(plain.state_dict())
    x = images(model, size=(96, 128))
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [info['reduction'] for info in model.feature_info] == [
        min(info['reduction'], stride) for info in plain.feature_info
    ]
    assert [tuple(y.shape[-2:]) for y in maps] == reductions(model, x.shape[-2:])
    before = plain.forward_intermediates(x, intermediates_only=True)
    first = [info['reduction'] for info in model.feature_info].index(stride)
    torch.testing.assert_close(maps[: first + 1], before[: first + 1])
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(torch.jit.script(model.eval())(x), model(x))
    with pytest.raises(ValueError, match='output_stride is 4; allowed are '):
        create(name, output_stride=4)


@pytest.mark.parametrize('kind', [ConvDownsample, PatchMerge, a2mamba.Downsample], ids=lambda kind: kind.__name__)
def test_downsampling_that_keeps_the_size(kind):
    """At every other pixel it says what it says when it halves the map; spread by two, the same on every other row."""
    layer = kind(4, 8).double().eval()
    x = torch.randn(2, 8, 12, 4, dtype=torch.float64)
    halved, twice = layer(x), layer(x[:, ::2, ::2])
    layer.keep_size(1)
    torch.testing.assert_close(layer(x)[:, ::2, ::2], halved)
    layer.keep_size(2)
    torch.testing.assert_close(layer(x)[:, ::4, ::4], twice)


@small
def test_prune(name):
    model = create(name).eval()
    x = images(model)
    expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    count = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert sum(p.numel() for p in model.parameters()) < count
    torch.testing.assert_close(model.forward_intermediates(x, indices=[0, 1], intermediates_only=True), expected)
    assert model.num_features == model.feature_info[1]['num_chs']
    assert model(x).shape[-1] == model.num_features
    model.reset_classifier(3, 'avg')
    assert model(x).shape == (2, 3)


@small
def test_grad_checkpointing(name):
    model = create(name).train()
    x = images(model)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        results.append((y.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@small
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtype(name, dtype):
    model = create(name, dtype=dtype).eval()
    assert all(p.dtype == dtype for p in model.parameters())
    x = images(model)
    y = model(x.to(dtype))
    assert y.dtype == dtype and y.isfinite().all()
    maps = model.forward_intermediates(x.to(dtype), intermediates_only=True)
    assert all(m.dtype == dtype for m in maps)


@small
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype):
    model = create(name).train()
    x = images(model)
    with torch.autocast('cpu', dtype):
        y = model(x)
        loss = nn.functional.cross_entropy(y.float(), torch.tensor([1, 2]))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    model.eval()  # batch norm of two images would amplify rounding
    with torch.no_grad(), torch.autocast('cpu', dtype):
        y = model(x)
    assert (y - model(x)).abs().max() < 0.05 * y.abs().max() + 0.05


# other ways to run


@small
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_script(name):
    with set_scriptable(True):
        model = any_size(name).eval()
    x, other = images(model), images(model, batch=1, size=(64, 75))
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x))
    torch.testing.assert_close(scripted(other), model(other))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), model(x))


@small
@pytest.mark.parametrize('tracer', ['timm', 'plain'])
def test_fx(name, tracer):
    model = create(name).eval()
    x = images(model)
    expected = model(x)
    if tracer == 'timm':
        nodes = classifiers(model)
        traced = create_feature_extractor(model, nodes)
        y = sum(traced(x).values()) / len(nodes)
    else:
        traced = torch.fx.symbolic_trace(model)
        y = traced(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert all(p.grad is not None for p in traced.parameters())


@small
def test_compile(name):
    torch._dynamo.reset()
    model = create(name).train()
    x = images(model)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    y = compiled(x)
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(grads, [p.grad for p in model.parameters()], rtol=1e-3, atol=1e-4)


@small
def test_compile_dynamic(name):
    """One graph for several sizes; maps of one pixel, half-resolution ones included, would be graphs of their own."""
    torch._dynamo.reset()
    model = any_size(name).eval()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch, size in enumerate(enlarged(model, (96, 128), (128, 80), (112, 144)), 2):
            x = images(model, batch=batch, size=size)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@small
def test_export(name):
    model = any_size(name).eval()
    x = images(model, size=enlarged(model, (96, 96))[0])
    # twice 16: whatever a family divides by is known to divide; from 96, so that no map has one pixel
    (step, _), other = enlarged(model, (32, 32), (128, 160))
    height, width = (step * torch.export.Dim(axis, min=3, max=8) for axis in 'hw')
    with torch.no_grad():
        program = torch.export.export(
            model, (x,), dynamic_shapes={'x': {0: torch.export.Dim('b', max=8), 2: height, 3: width}}
        )
        torch.testing.assert_close(program.module()(x), model(x))
        other = images(model, batch=3, size=other)
        torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@small
def test_meta(name):
    model = create(name, device='meta')
    assert model(images(model).to('meta')).shape == (2, 1000)


# scan orders


def randomise_projections(model):
    """As trained: fresh mixers say little."""
    for name, p in model.named_parameters():
        if p.ndim in (2, 3):
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        elif name.endswith('bn.weight'):  # 0 at first where a residual branch ends
            nn.init.ones_(p)


@scanning
@pytest.mark.parametrize('scan', list_scans())
def test_every_scan(name, scan):
    default = create(name, device='meta')
    model = create(name, scan=scan).eval()
    x = images(model)
    y = model(x)
    assert y.isfinite().all()
    assert get_scan(model.scan).name == scan
    other = create(name).eval()
    if model.scan_directions == default.scan_directions:
        other.load_state_dict(model.state_dict())
        other.set_scan(scan)
        assert torch.equal(other(x), y)
    else:
        before = other.scan, other(x)
        with pytest.raises(ValueError, match=f'{default.scan_directions}; choose an order that offers'):
            other.set_scan(scan)
        assert other.scan == before[0] and torch.equal(other(x), before[1])


@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('scan', ['local', 'atrous'])
def test_zero_tokens(name, scan):
    """On maps that windows do not fill, zero tokens are steps of their own; on maps that they fill there are none."""
    args = {'name': scan, 'step' if scan == 'atrous' else 'window': 2}
    models = [any_size(name, scan={**args, **pad}).eval() for pad in ({}, {'pad': 'zero'})]
    for model in models:
        randomise_projections(model)
    models[1].load_state_dict(models[0].state_dict())
    # odd at stride 16, and at stride 4 for models that scan early
    full, *odd = (images(models[0], size=size) for size in ((128, 128), (112, 80), (108, 84)))
    with torch.no_grad():
        torch.testing.assert_close(*(model.forward_features(full) for model in models), rtol=1e-4, atol=1e-4)
        assert max((models[1](x) - models[0](x)).abs().max() for x in odd) > 1e-6
    models[1].train()(odd[0]).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models[1].parameters())


@scanning
def test_scan_matters(name):
    model = create(name).eval()
    x = images(model)
    randomise_projections(model)
    y = model(x)
    model.set_scan({'name': 'local', 'window': 2})
    assert json.loads(model.scan)['window'] == 2
    assert (model(x) - y).std() > 1e-3 * y.std()
    with pytest.raises(ValueError, match='unknown scan'):
        model.set_scan('sideways')
    with pytest.raises(ValueError, match='unknown scan'):
        create(name, scan='sideways')


# LBMamba's local backward scan

# LBVim is LBMamba: there it is on unless it is 0
OFF = [name for name in SCANNING if name != 'test_lbvim']


def looking_ahead(name, **args):
    """A model of 32 x 32 images, in fp64 and with weights that say something."""
    size = {'img_size': 32} if fixed(timm.create_model(name, device='meta')) else {}
    model = create(name, num_classes=3, dtype=torch.float64, **size, **args).eval()
    randomise_projections(model)
    return model


def picture(model):
    walking = [name for name, module in model.named_modules() if isinstance(module, ScanningModule)]
    side = 64 if all(name.startswith('stages.3.') for name in walking) else 32  # for a map of more than one token
    return images(model, batch=1, size=(side, side)).double()


@pytest.mark.parametrize('name', SCANNING)
def test_local_window_against_the_reference(name):
    """Output and every gradient are those of the sequential reference."""
    model = looking_ahead(name, local_window=3)
    results = []
    for backend in ('torch', 'reference'):
        with use_backend(backend):
            y = model(picture(model))
            grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        results.append([y, *grads])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', OFF)
def test_local_window_keeps_the_weights(name):
    """It changes what a model computes and none of its weights; windows of one step see nothing ahead."""
    plain = looking_ahead(name)
    before = plain(picture(plain))
    outputs = []
    for window in (0, 1, 4):
        model = looking_ahead(name, local_window=window)
        model.load_state_dict(plain.state_dict())
        outputs.append(model(picture(model)))
    assert torch.equal(outputs[0], before)
    torch.testing.assert_close(outputs[1], before)
    assert (outputs[2] - before).std() > 1e-4 * before.std()


@pytest.mark.parametrize('name', OFF)
@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_local_window_in_a_script(name):
    with set_scriptable(True):
        model = looking_ahead(name, local_window=4)
        scripted = torch.jit.script(model)
    x = picture(model)
    torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.parametrize('name', OFF)
@pytest.mark.parametrize('window', [-1, 2.0, True])
def test_no_local_window(name, window):
    with pytest.raises(ValueError, match=f'local_window is {window}; allowed are integers from 0'):
        create(name, local_window=window, device='meta')


# saving and loading


@small
@pytest.mark.parametrize('kwargs', [{}, {'in_chans': 1, 'num_classes': 5}], ids=str)
def test_hub_folder(name, kwargs, tmp_path):
    model = create(name, **kwargs).eval()
    if name in SCANNING:
        model.set_scan('snake')
    if fixed(model):
        model.set_input_size((64, 128))
    args = None
    if not hasattr(timm.models, 'get_model_args'):  # before 1.0.29 timm does not record them
        args = {**kwargs, **({'scan': model.scan} if name in SCANNING else {})}
        args.update({'img_size': (64, 128)} if fixed(model) else {})
    save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images(model, size=(64, 128), chans=model.in_chans)
    assert torch.equal(loaded(x), model(x))
    features = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True).eval()
    expected = model.forward_intermediates(x, indices=len(features.feature_info.channels()), intermediates_only=True)
    torch.testing.assert_close(features(x), expected)


@small
def test_fine_tuning(name, tmp_path):
    """A checkpoint with another classifier and more image channels is adapted, as timm does."""
    model = create(name)
    file = tmp_path / 'weights.safetensors'
    from safetensors.torch import save_file

    save_file(model.state_dict(), file)
    overlay = {'file': str(file)}
    other = create(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
    assert other(images(other, chans=1)).shape == (2, 5)
    same = create(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(x, same.state_dict()[key]) for key, x in model.state_dict().items())
    assert same.pretrained_cfg['file'] == str(file) and not same.pretrained_cfg.get('state_dict')


@small
def test_unknown_argument(name):
    with pytest.raises(TypeError, match='sidewaysness'):
        create(name, sidewaysness=3)


@pytest.mark.parametrize('taken', [False, True])
def test_register_quietly(taken):
    """No name of ours is timm's: timm would warn and overwrite. With one that is taken, this test sees it."""
    code = f"""
import timm
theirs = {{name: timm.models.model_entrypoint(name) for name in timm.list_models()}}
import visionssm
from timm.models import register_model
if {taken}:
    @register_model
    def resnet18(pretrained=False, **kwargs):
        pass
changed = [name for name, entry in theirs.items() if timm.models.model_entrypoint(name) is not entry]
print('changed:', *changed)
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout == ('changed: resnet18\n' if taken else 'changed:\n'), run.stderr
    assert ('resnet18' in run.stderr) == taken and taken == bool(run.stderr), run.stderr
