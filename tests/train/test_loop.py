"""The loop: learning, accumulation, losses that are no numbers, fp16, going on."""

import math

import pytest
import torch
from torch import nn

from visionssm.train.loop import NonFiniteLossError, Progress, first_non_finite, fit


class Steps:
    """A schedule that does nothing."""

    def step_update(self, num_updates):
        pass


def loss_fn(forward, images, labels):
    return nn.functional.cross_entropy(forward(images), labels)


def fit_linear(batches, lr=0.5, model=None, **options):
    torch.manual_seed(0)
    model = nn.Linear(2, 2) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {'epochs': 1, 'evaluate': lambda m: 0.5, **options}
    return model, lambda: fit(model, lambda e, first: batches[first:], loss_fn, optimizer, Steps(), **options)


GOOD = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)
BAD = torch.tensor([[math.nan, 0.0]]), torch.tensor([0])


def test_fit_learns_and_reports():
    seen, epochs = [], []
    _, run = fit_linear([GOOD] * 3, epochs=4, on_step=lambda p: seen.append(p.loss), on_epoch=epochs.append)
    history = run()
    assert history == epochs and [epoch.number for epoch in history] == [1, 2, 3, 4]
    assert len(seen) == 12 and seen[-1] < seen[0] and history[-1].accuracy == 0.5
    assert history[0].loss == pytest.approx(sum(seen[:3]) / 3)


def test_accumulated_batches_are_one_update():
    parts = [(x, y) for x, y in zip(GOOD[0].split(2), GOOD[1].split(2), strict=True)]
    whole, run_whole = fit_linear([GOOD])
    split, run_split = fit_linear(parts, accumulate=4)
    run_whole(), run_split()
    assert torch.allclose(whole.weight, split.weight, atol=1e-7)


def test_a_loss_that_is_no_number_stops_and_is_named():
    model, run = fit_linear([GOOD, BAD])
    with pytest.raises(
        NonFiniteLossError, match=r'nan.* at step 1 \(epoch 1\); first in the output of the model .*input'
    ):
        run()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_skipping_counts_and_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    progress = Progress()
    _, run = fit_linear(
        [GOOD, (BAD[0].repeat(2, 1), BAD[1].repeat(2)), GOOD], model=model, skip_non_finite=True, progress=progress
    )
    history = run()
    assert (progress.skipped, progress.step) == (1, 3)
    assert math.isfinite(history[0].loss) and bool(model[0].running_mean.isfinite().all())
    assert int(model[0].num_batches_tracked) == 2


def test_the_layer_is_named_and_so_is_a_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = math.inf
    assert 'first in the output of 1 (Linear)' in first_non_finite(model, lambda: model(torch.ones(1, 2)))
    model[1].weight.data.fill_(1)
    model[0].weight.grad = torch.full((2, 2), math.nan)
    assert 'gradient of 0.weight' in first_non_finite(model, lambda: model(torch.ones(1, 2)))


class Root(nn.Module):
    """Finite, with an infinite gradient."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.scale.sqrt()


def test_infinite_gradients_of_a_finite_loss_stop_too():
    model, run = fit_linear([GOOD], model=Root())
    with pytest.raises(NonFiniteLossError, match='norm of its gradient (inf|nan).*gradient of scale'):
        run()
    assert model.scale.item() == 0


def test_fp16_scaler_skips_overflow_and_gives_up_in_the_end():
    progress = Progress()
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
    model, run = fit_linear([(GOOD[0] * 100, GOOD[1])] * 8, lr=1e-4, scaler=scaler, progress=progress)
    before = model.weight.clone()
    run()
    assert 0 < progress.skipped < 8 and scaler.get_scale() < 2.0**127 and not torch.equal(model.weight, before)
    _, run = fit_linear([GOOD] * 8, model=Root(), scaler=torch.amp.GradScaler('cpu', init_scale=2.0))
    with pytest.raises(NonFiniteLossError, match='overflow even unscaled at step 1'):
        run()


def test_goes_on_in_the_middle_of_an_epoch():
    batches = [(GOOD[0][i : i + 4], GOOD[1][i : i + 4]) for i in range(4)]
    seen = []
    model, run = fit_linear(batches, epochs=2, on_step=lambda p: seen.append((p.epoch, p.batch, p.step, p.loss)))
    history = run()
    kept = {}

    def stop(progress):
        if progress.step == 6:
            kept.update(vars(progress), history=list(progress.history), model=stopped.state_dict())
            raise KeyboardInterrupt

    stopped, run = fit_linear(batches, epochs=2, on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        run()
    state = {key: value.copy() if isinstance(value, dict) else value for key, value in kept.items()}
    weights = state.pop('model')
    again = []
    resumed, run = fit_linear(
        batches,
        epochs=2,
        progress=Progress(**state),
        on_step=lambda p: again.append((p.epoch, p.batch, p.step, p.loss)),
    )
    resumed.load_state_dict(weights)
    assert [epoch.loss for epoch in run()] == [epoch.loss for epoch in history]
    assert again == seen[6:] and torch.equal(model.weight, resumed.weight)
