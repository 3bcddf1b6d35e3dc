"""Every weight is read by the forward of the module that holds it, so that whatever hooks into modules works."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import visionssm  # noqa: F401  registers the models
from visionssm.weights.published import FAMILIES

OURS = [family for family in FAMILIES.values() if not family.borrowed]
NAMES = [name for family in OURS for name in family.models if name.startswith('test_')]
small = pytest.mark.parametrize('name', NAMES)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


PREPARATIONS = {
    'prune': lambda layer: prune.l1_unstructured(layer, 'weight', 0.3),
    'weight_norm': weight_norm,
    'spectral_norm': spectral_norm,
    'parametrizations.weight_norm': parametrizations.weight_norm,
    'parametrize': lambda layer: parametrize.register_parametrization(layer, 'weight', Doubled()),
}


def create(name, seed=0):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=5)


def prepared(name, prepare, seed):
    model = create(name, seed)
    for layer in [m for m in model.modules() if isinstance(m, LAYERS)]:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)  # older forms, which checkpoints still use
            prepare(layer)
    model.train()(images(model))  # spectral norms start with a guess, which training mends
    return model.eval()


def images(model):
    torch.manual_seed(1)
    return torch.randn(2, *model.pretrained_cfg['input_size'])


@small
@pytest.mark.parametrize('how', PREPARATIONS)
def test_prepared_layers(name, how):
    """Loaded into a model prepared alike, weights mean the same; and it trains, step after step."""
    model, other = (prepared(name, PREPARATIONS[how], seed) for seed in (0, 1))
    other.load_state_dict(model.state_dict())
    x = images(model)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    for _ in range(2):
        model.zero_grad()
        model(x).square().mean().backward()
        assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@small
def test_offloaded(name):
    """Weights that are there while their module runs, and on the meta device otherwise, as accelerate does it."""
    model = create(name).eval()
    x = images(model)
    with torch.no_grad():
        expected = model(x)
        for module in model.modules():
            held = dict(module._parameters)
            away = {key: p if p is None else nn.Parameter(p.to('meta')) for key, p in held.items()}

            def load(module, args, held=held):
                module._parameters.update(held)

            def unload(module, args, output, away=away):
                module._parameters.update(away)

            module._parameters.update(away)
            module.register_forward_pre_hook(load)
            module.register_forward_hook(unload)
        torch.testing.assert_close(model(x), expected)  # hooks may choose another way to the same


@small
def test_wrapped_layers(name):
    """A layer in another layer's place is used: low-rank adapters on every linear layer change the output and learn."""

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    model = create(name).eval()
    adapted = copy.deepcopy(model).requires_grad_(False)
    for path, layer in list(adapted.named_modules()):
        if isinstance(layer, nn.Linear):
            adapted.set_submodule(path, Adapted(layer))
    x = images(model)
    y = adapted(x)
    assert not torch.allclose(y, model(x))
    y.square().mean().backward()
    learnt = [p for key, p in adapted.named_parameters() if key.endswith('.up.weight')]
    assert learnt and all(p.grad is not None for p in learnt)


@small
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
def test_trace(name):
    model = create(name).eval()
    x = images(model)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(2 * x), model(2 * x))
