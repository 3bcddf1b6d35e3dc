"""Every family learns: fifty steps or a hundred on real handwritten digits."""

import pytest
import timm
import torch
from timm.models import model_entrypoint
from torch.nn import functional as F

from visionssm.data.digits import fitting_size, load_digits

NAMES = [name for name in timm.list_models('test_*') if model_entrypoint(name).__module__.startswith('visionssm.')]
STEPS, LAST, BATCH = 50, 5, 28
# twice as long, with a smaller image: a class token in front of all is far from most of a large one; three gated blocks
SLOW = {'test_videomamba', 'test_shufflemamba', 'test_localvim'}


@pytest.mark.parametrize('name', [*NAMES, 'test_mambaout'])
def test_learns(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    epochs, size = (2, 48) if name in SLOW else (1, fitting_size(name, model))
    args = {'img_size': size} if model.pretrained_cfg.get('fixed_input_size') else {}
    model = timm.create_model(name, in_chans=1, num_classes=10, **args)
    digits = load_digits()
    shuffled = [torch.randperm(len(digits.train_labels))[: STEPS * BATCH] for _ in range(epochs)]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for chosen in torch.cat(shuffled).split(BATCH):
        images = F.interpolate(digits.train_images[chosen] * 2 - 1, (size, size), mode='bilinear')
        loss = F.cross_entropy(model(images), digits.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == epochs * STEPS
    assert sum(losses[-LAST:]) / LAST < losses[0] / 2, losses
