# %% [markdown]
# # A scan order of your own, and what it changes
#
# A scan sees an image as a sequence. Does the order matter? This tutorial adds an order, and compares it with two
# others on real images, with several seeds each: one run per order would show little but chance.
#
# The images are of [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) (MIT licence,
# [arXiv:1708.07747](https://arxiv.org/abs/1708.07747)). It takes a minute or two on a CPU.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from scipy import stats
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST

import visionssm  # registers the models
from visionssm.ops import use_backend
from visionssm.scans import get_scan, register_scan

# %% [markdown]
# ## Register it
#
# An order is a function of height and width that returns token positions. This one goes from the edge inwards, so
# that the middle of the image, where things usually are, is seen last and remembered best. `register_scan` checks
# what it returns; from then on, every model that scans knows it by its name.


# %%
@register_scan(
    'edge_in', meaning='From the edge to the middle', source='this page'
)
def edge_in(height, width):
    """Token positions by their distance from the middle, farthest first."""
    rows, columns = np.mgrid[:height, :width]
    distance = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2
    return np.argsort(-distance, axis=None, kind='stable')


ORDERS = {
    'raster': {'name': 'raster'},
    'edge_in': {'name': 'edge_in'},
    'random': {'name': 'random', 'seed': 0},
}

# %% alt="The three orders on a grid of seven by seven tokens: rows, from the edge inwards, and without any pattern"
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout='constrained')
for axis, (name, order) in zip(axes, ORDERS.items(), strict=True):
    rows, columns = np.divmod(get_scan(order).table(7, 7)[0], 7)
    axis.plot(columns, rows, color='#999999', lw=1)
    axis.scatter(columns, rows, c=np.arange(49), cmap='viridis', s=70, zorder=2)
    axis.set_title(name, fontsize=14)
    axis.set(xticks=[], yticks=[], aspect='equal')
    axis.invert_yaxis()
plt.show()

# %% [markdown]
# ## Compare
#
# A fair comparison changes nothing else. All runs use the same 1000 training and 1000 test images, the same
# schedule, and for each seed the same first weights and batches. The model is a Vim of one direction without a
# class token: with four directions, as most models have, each order would see what the others see.


# %%
def images(train, count):
    """Images (count, 1, 28, 28) and labels."""
    data = FashionMNIST('data', train=train, download=True)
    return data.data[:count, None] / 255 - 0.3, data.targets[:count]


x, y = images(True, 1000)
x_test, y_test = images(False, 1000)


def accuracy(order, seed, epochs=4):
    """Train, and return the share of the test images that is right, in percent."""
    torch.manual_seed(seed)
    model = timm.create_model(
        'vim_nano', img_size=28, patch_size=4, in_chans=1, num_classes=10, depth=2, embed_dim=64,
        class_token=False, scan=order,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=epochs * len(x) // 25
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(25):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return (
            100
            * (model.eval()(x_test).argmax(1) == y_test).float().mean().item()
        )


SEEDS = range(3)
with use_backend('linear=torch'):  # faster for layers this narrow
    results = {
        name: np.array([accuracy(order, seed) for seed in SEEDS])
        for name, order in ORDERS.items()
    }
for name, values in results.items():
    print(
        f'{name:8} {values.mean():.1f} % on average;',
        ', '.join(f'{value:.1f}' for value in values),
    )

# %% alt="Test accuracy of each order, one point per seed, and a bar at the mean"
figure, axis = plt.subplots(figsize=(7, 2.8), layout='constrained')
for row, (values, colour) in enumerate(
    zip(results.values(), ('#0072b2', '#d55e00', '#009e73'), strict=True)
):
    axis.plot(values, [row] * len(values), 'o', color=colour, ms=11, alpha=0.7)
    axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=3)
axis.set_yticks(range(len(results)), results, fontsize=14)
axis.set_ylim(-0.6, len(results) - 0.4)
axis.tick_params(axis='x', labelsize=12)
axis.invert_yaxis()
axis.set_xlabel('test accuracy in %', fontsize=13)
axis.grid(axis='x', alpha=0.3)
plt.show()

# %% [markdown]
# ## What can be said
#
# The runs of one seed share first weights and batches, so we look at differences within a seed. An effect that is
# larger than its own spread over seeds may be one; a smaller one is not shown by these runs.

# %%
for first, second in itertools.combinations(results, 2):
    difference = results[second] - results[first]
    mean, spread = difference.mean(), difference.std(ddof=1)
    interval = stats.t.ppf(0.975, len(SEEDS) - 1) * spread / len(SEEDS) ** 0.5
    verdict = 'clear' if abs(mean) > interval else 'within chance'
    print(
        f'{second} - {first}: {mean:+.1f} points, 95 % interval ±{interval:.1f}: {verdict}'
    )
assert all(
    values.min() > 50 for values in results.values()
)  # each learns; chance is 10 %

# %% [markdown]
# Three seeds show only large effects, and these are of a tiny model, few images and a few hundred updates. Before you
# choose an order for a model of your own, compare on your own data and at your own size, with `SEEDS = range(10)`, or
# [`visionssm compare`](../comparing.md).
#
# [Scan orders](../scan-orders.md) lists those that are there; the [playground](../playground.md) walks along them.
