"""What papers add: layer-wise shuffle, teachers, the average's own predictions; and checkpoints by themselves."""

import math
import random

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import visionssm  # noqa: F401 (registers the models)
from visionssm.train import load_recipe
from visionssm.train.checkpoint import Checkpoints, random_states, set_random_states
from visionssm.train.loop import Progress
from visionssm.train.objective import Objective
from visionssm.train.shuffle import shuffle_layers

CPU = torch.device('cpu')


class Recorder(nn.Module):
    """A block that keeps what it sees, and changes nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, order):
        self.seen.append(x)
        return x


@pytest.mark.parametrize('name', ['test_vim', 'test_plainmamba', 'test_lbvim'])
def test_shuffle_permutes_all_tokens_and_puts_them_back(name):
    torch.manual_seed(0)
    model = timm.create_model(name).train()
    model.blocks = nn.ModuleList(Recorder() for _ in range(5))
    shuffle_layers(model, 1.0)
    images = torch.rand(2, 3, 96, 96)
    tokens, _ = model._prepare(images)
    hits = np.zeros(5)
    for _ in range(40):
        with torch.no_grad():
            out = model.forward_features(images)
        assert torch.equal(out, model.norm(tokens))
        for i, block in enumerate(model.blocks):
            seen, plain = block.seen.pop().flatten(1, -2), tokens.flatten(1, -2)
            hits[i] += not torch.equal(seen, plain)
            order = torch.cdist(seen[0], plain[0]).argmin(1)
            assert torch.equal(seen, plain[:, order]) and len(order.unique()) == len(order)
    # rates of 0, 1/4, 1/2, 3/4, 1
    assert hits[0] == 0 and hits[4] == 40 and 2 <= hits[1] < hits[3] <= 38
    tokens, _ = model.eval()._prepare(images)
    with torch.no_grad():
        model.forward_features(images)
    assert torch.equal(model.blocks[4].seen[0], tokens)


def test_shuffle_draws_anew_under_compile():
    torch.manual_seed(0)
    model = timm.create_model('test_vim', depth=1, embed_dim=16, drop_path_rate=0.0).train()
    shuffle_layers(model, 1.0)
    for hook in model.blocks[0]._forward_pre_hooks.values():
        hook.__self__.probability = 1.0
    images = torch.rand(1, 3, 96, 96)
    forward = torch.compile(model, backend='eager')
    with torch.no_grad():
        assert not torch.allclose(forward(images), forward(images))
        model.eval()
        assert torch.equal(forward(images), forward(images))


def test_shuffle_is_drawn_alike_when_blocks_are_recomputed():
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = timm.create_model('test_vim', depth=3, embed_dim=16).train()
        shuffle_layers(model, 1.0)
        model.set_grad_checkpointing(recompute)
        model(torch.rand(2, 3, 96, 96)).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


def objective(*keys, **parts):
    recipe = load_recipe(None, ['smoothing=0', *keys], model='test_vim', data='digits')
    return Objective(recipe, 'cpu', None, parts.pop('progress', Progress()), **parts)


LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
TAUGHT = torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.0, 2.0]])
TARGET = torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.0, 0.5]])
LABELS = torch.tensor([0, 1])


def test_distillation_by_hand():
    base = nn.functional.cross_entropy(LOGITS, LABELS)
    hard = objective(
        'teacher=t', 'distillation=hard', 'base_weight=0.5', 'distillation_weight=0.5', teacher=lambda x: TARGET
    )
    expected = 0.5 * base + 0.5 * nn.functional.cross_entropy(TAUGHT, torch.tensor([1, 0]))
    assert torch.allclose(hard(lambda x: (LOGITS, TAUGHT), LOGITS, LABELS), expected)
    soft = objective('teacher=t', 'temperature=2', 'distillation_weight=5', teacher=lambda x: TARGET)
    p, q = (TARGET / 2).softmax(1), (LOGITS / 2).softmax(1)
    expected = base + 5 * 4 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(soft(lambda x: LOGITS, LOGITS, LABELS), expected)


def test_mesa_by_hand():
    average = ModelEmaV3(nn.Linear(3, 3))
    progress = Progress(epoch=74)
    mesa = objective('mesa=1.5', 'mesa_start=75', 'ema=0.9', progress=progress, ema=average)
    base = nn.functional.cross_entropy(LOGITS, LABELS)
    assert torch.equal(mesa(lambda x: LOGITS, LOGITS, LABELS), base)
    progress.epoch = 75
    own = average.module(LOGITS).softmax(1)
    expected = base - 1.5 * (own * LOGITS.log_softmax(1)).sum(1).mean()
    assert torch.allclose(mesa(lambda x: LOGITS, LOGITS, LABELS), expected)


def test_random_states_come_back():
    states = random_states(CPU)
    expected = random.random(), np.random.rand(), torch.rand(1), random.gauss(0, 1)
    set_random_states(states, CPU)
    assert expected == (random.random(), np.random.rand(), torch.rand(1), random.gauss(0, 1))


def test_checkpoints_are_kept_replaced_and_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=2)
    assert checkpoints.latest() is None
    for step in range(1, 5):
        checkpoints.save({'progress': {'step': step}, 'nan': math.nan}, step, best=step == 2)
    assert [file.name for file in checkpoints.files()] == ['step-00000003.pt', 'step-00000004.pt']
    assert torch.load(tmp_path / 'checkpoints' / 'best.pt', weights_only=True)['progress'] == {'step': 2}
    file, state = checkpoints.latest()
    assert file.name == 'step-00000004.pt' and state['progress'] == {'step': 4}


def test_no_code_in_a_checkpoint_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    torch.save({'progress': Evil()}, folder / 'step-00000001.pt')
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        Checkpoints(folder).latest()
    assert not (tmp_path / 'ran').exists()
