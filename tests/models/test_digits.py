"""Every family learns: fifty steps on real handwritten digits."""

import pytest
import timm
import torch
from timm.models import model_entrypoint
from torch.nn import functional as F

from visionssm.data.digits import load_digits
from visionssm.demo.run import AugmentedBatches, DemoOptions, create_model, enlarge

NAMES = [name for name in timm.list_models('test_*') if model_entrypoint(name).__module__.startswith('visionssm.')]
STEPS, LAST = 50, 5


@pytest.mark.parametrize('name', [*NAMES, 'test_mambaout'])
def test_fifty_steps(name):
    torch.manual_seed(0)
    model, size = create_model(DemoOptions(name))
    digits = load_digits()
    batches = AugmentedBatches(digits.train_images, digits.train_labels, 28, seed=0, degrees=0, shift=0, zoom=0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for images, labels in list(batches)[:STEPS]:
        loss = F.cross_entropy(model(enlarge(images, size)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == STEPS
    assert sum(losses[-LAST:]) / LAST < losses[0] / 2, losses
