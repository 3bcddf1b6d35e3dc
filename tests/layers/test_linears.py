"""Linear layers are torch's own to whoever looks, and fast all the same."""

import copy
import pickle
from collections import Counter

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

import visionssm.ops.products as products
from visionssm.layers import Mlp, functional, mlp
from visionssm.ops import available_backends, use_backend
from visionssm.weights.published import FAMILIES

needs_onednn = pytest.mark.skipif(
    bool(available_backends(op='linear')['onednn']), reason='torch has no oneDNN product on this machine'
)


@pytest.fixture
def fast(monkeypatch):
    """The calls of the faster product, at any size and on any processor."""
    calls = []
    original = products._linear

    def counted(x, weight, bias):
        calls.append(tuple(weight.shape))
        return original(x, weight, bias)

    monkeypatch.setattr(products, '_linear', counted)
    monkeypatch.setattr(products, '_LEAST_WORK', 0)
    monkeypatch.setattr(products.onednn, 'IS_FASTER', True)
    monkeypatch.setattr(functional, '_LEAST_ELEMENTS', 0)
    return calls


SMALL = [name for family in FAMILIES.values() for name in family.models if name.startswith('test_')]
# one gate for all directions, or for both branches: as often as it is called
SHARED = {'test_localvim': 4, 'test_localvmamba': 4, 'test_efficientvmamba': 2}


@pytest.mark.parametrize(
    'name', [name for family in FAMILIES.values() for name in family.models if name[:5] == 'test_']
)
def test_types(name):
    model = timm.create_model(name, num_classes=5).eval()
    layers = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(layers) > 3 and {type(module) for module in layers.values()} == {nn.Linear}
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert not any(isinstance(module, nn.Linear) for module in quantised.modules())
    x, calls = torch.randn(1, *model.pretrained_cfg['input_size']), Counter()
    with torch.no_grad():
        expected = model(x)
        assert torch.isfinite(quantised(x)).all()
        for key, module in layers.items():
            module.register_forward_hook(lambda *_, key=key: calls.update([key]))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert set(calls) == set(layers)
    assert set(calls.values()) <= {1, SHARED.get(name, 1)}


@pytest.mark.parametrize('name', ['test_vim', 'test_plainmamba', 'test_a2mamba'])
def test_hooks_leave_the_precision(name):
    model = timm.create_model(name).eval().bfloat16()
    x = torch.randn(1, *model.pretrained_cfg['input_size'], dtype=torch.bfloat16)
    expected = model(x)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    assert torch.equal(model(x), expected)


@needs_onednn
def test_faster_product_runs(fast):
    mlp = Mlp(8, 16)
    mlp(torch.randn(3, 8)).sum().backward()
    assert fast[:2] == [(16, 8), (8, 16)] and mlp.fc1.weight.grad is not None
    fast.clear()
    nn.Linear(8, 8)(torch.randn(3, 8))  # other people's layers are left alone
    assert not fast


@needs_onednn
def test_processors_without_wide_vectors(fast, monkeypatch):
    monkeypatch.setattr(products.onednn, 'IS_FASTER', False)
    mlp, x = Mlp(8, 16), torch.randn(3, 8)
    mlp(x)
    assert not fast
    with use_backend('linear=onednn'):
        mlp(x)
    assert len(fast) == 2


@needs_onednn
def test_what_sits_on_layers_is_called(fast):
    mlp, x = Mlp(8, 16), torch.randn(3, 8)
    expected = mlp(x)
    assert len(fast) == 2
    seen = []
    mlp.fc1.register_forward_hook(lambda *args: seen.append(1))
    prune.identity(mlp.fc2, 'weight')
    assert torch.allclose(mlp(x), expected) and seen and len(fast) == 4
    clone = pickle.loads(pickle.dumps(Mlp(8, 16).fc1))
    assert type(clone) is nn.Linear


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_steps_aside(fast):
    mlp, x = Mlp(8, 16), torch.randn(3, 8)
    graph = torch.jit.trace(mlp, x).inlined_graph
    assert 'aten::linear' in str(graph) and 'visionssm::' not in str(graph)
    fast.clear()  # tracing ends with a call in eager mode, to compare
    torch.compile(mlp, backend='eager', fullgraph=True)(x)
    torch.export.export(mlp, (x,))
    mlp.double()(x.double())
    with torch.autocast('cpu', torch.bfloat16):
        mlp.float()(x)
    assert not fast


def test_large_batches(monkeypatch):
    """At inference large batches go through an MLP in parts, unless somebody looks inside."""
    x, seen = torch.randn(5, 6, 7, 8), []
    for m in (mlp.DepthwiseMlp(8, 32), mlp.Mlp(8, 32)):
        whole = m(x)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(mlp, '_MOST_ELEMENTS', 2 * 6 * 7 * 32 // torch.get_num_threads())
            mix = m.mix
            patch.setattr(m, 'mix', lambda images, mix=mix: seen.append(len(images)) or mix(images))
            torch.testing.assert_close(m(x), whole)
            m.fc1.register_forward_hook(lambda *_: None)
            torch.testing.assert_close(m(x), whole)
    assert seen == [2, 2, 1, 5] * 2
