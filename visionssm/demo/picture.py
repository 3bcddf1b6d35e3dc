"""The picture that the demo ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from visionssm.scans import get_scan
from visionssm.scans.plot import WALK_LEGEND, draw_walk

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from visionssm.data.digits import Digits

    from .training import Trained

_INK, _FAINT, _LINE, _GOOD, _BAD, _SECOND = '#1b1f24', '#5b6570', '#d5dae0', '#2f7d4f', '#c0392b', '#7a2f8f'
_SAMPLES = 24
_MOST_MISTAKES = 12
_MOST_PATHS = 4


def draw(trained: Trained, digits: Digits, name: str, file: Path) -> None:
    """Draw learning curve, confusion matrix, scan path and sample predictions. Needs matplotlib.

    Args:
        trained: The model and its results.
        digits: The data that it was trained on.
        name: What to call the model.
        file: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), facecolor='white')
    threads = f'{torch.get_num_threads()} thread{"s" if torch.get_num_threads() > 1 else ""}'
    wrong = int((trained.probabilities.argmax(1) != digits.test_labels).sum())
    figure.text(0.035, 0.965, f'{name} on real handwritten digits', size=17, weight='bold', color=_INK, va='top')
    figure.text(
        0.035,
        0.925,
        f'{trained.accuracy:.2%} of {len(digits.test_labels)} held-out images correct ({wrong} wrong) after '
        f'{len(trained.history)} epochs, {trained.history[-1].seconds:.0f} s on a CPU with {threads}; '
        f'trained on {len(digits.train_labels)} images from scratch',
        size=11,
        color=_FAINT,
        va='top',
    )
    _draw_history(figure.add_axes((0.075, 0.475, 0.235, 0.355)), trained)
    _draw_confusion(figure.add_axes((0.405, 0.475, 0.235, 0.355)), trained, digits)
    _draw_scan(figure.add_axes((0.715, 0.445, 0.26, 0.385)), trained)
    _draw_samples(figure.add_axes((0.035, 0.015, 0.94, 0.355)), trained, digits)
    figure.savefig(file, dpi=110)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, size=11.5, weight='bold', color=_INK, loc='left', pad=8)


def _draw_history(axes: Axes, trained: Trained) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

    epochs = [epoch.number for epoch in trained.history]
    accuracy = [epoch.accuracy for epoch in trained.history]
    _title(axes, 'Learning curve')
    axes.plot(epochs, accuracy, 'o-', color=_GOOD, markersize=4)
    lowest = min(0.85, *accuracy, 1)
    axes.set_ylim(lowest - 0.02, 1.004)
    axes.yaxis.set_major_locator(MultipleLocator(0.05 if lowest > 0.6 else 0.1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel('held-out accuracy', color=_GOOD)
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y', color=_LINE, linewidth=0.6)
    other = axes.twinx()
    other.plot(epochs, [epoch.loss for epoch in trained.history], 's--', color=_SECOND, markersize=3, linewidth=1.2)
    other.set_ylim(0)
    other.set_ylabel('training loss (labels smoothed)', color=_SECOND)
    for part in (axes, other):
        part.spines['top'].set_visible(False)
        part.tick_params(labelsize=9, color=_FAINT)


def _draw_confusion(axes: Axes, trained: Trained, digits: Digits) -> None:
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (digits.test_labels.numpy(), trained.probabilities.argmax(1).numpy()), 1)
    _title(axes, 'Confusion matrix (held-out images)')
    colours = np.ones((10, 10, 3))
    right = np.eye(10, dtype=bool)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for cells, colour in ((right, (0x2F, 0x7D, 0x4F)), (~right, (0xC0, 0x39, 0x2B))):
        strength = np.where(counts > 0, 0.15 + 0.7 * (share if cells is right else np.minimum(share * 5, 1)), 0)
        tint = 1 - strength[..., None] * (1 - np.array(colour) / 255)
        colours[cells] = tint[cells]
    axes.imshow(colours)
    for row, column in zip(*counts.nonzero(), strict=True):
        strong = row == column
        axes.text(
            column, row, counts[row, column], ha='center', va='center', size=8.5, color='white' if strong else _INK
        )
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which='minor', color=_LINE, linewidth=0.6)
    axes.tick_params(which='both', length=0, labelsize=9)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    axes.spines[:].set_visible(False)


def _draw_scan(axes: Axes, trained: Trained) -> None:
    axes.axis('off')
    spec = getattr(trained.model, 'scan', None)
    if spec is None:
        return
    order = get_scan(spec)
    side = -(-trained.images.shape[-1] // trained.model.feature_info[0]['reduction'])
    shown = order.table(side, side)[:_MOST_PATHS]
    columns = 1 if len(shown) == 1 else 2
    for k, path in enumerate(shown):
        corner = (k % columns * (side + 1.2), k // columns * (side + 1.2))
        draw_walk(axes, path, side, side, corner)
    span = columns * (side + 1.2) - 1.2
    height = -(-len(shown) // columns) * (side + 1.2) - 1.2
    axes.text(0, height + 0.05 * span, WALK_LEGEND, size=8, color=_FAINT, va='top')
    axes.set(xlim=(0, span), ylim=(height * 1.08, 0), aspect='equal', anchor='NW')
    more = '' if len(shown) == order.directions else f', {len(shown)} of {order.directions} directions'
    arguments = ''.join(f', {key}={value}' for key, value in order.args)
    axes.set_title(
        f'Scan path: {order.name}{arguments} on {side}x{side} tokens{more}',
        size=11.5,
        weight='bold',
        color=_INK,
        loc='left',
        pad=8,
    )


def _draw_samples(axes: Axes, trained: Trained, digits: Digits) -> None:
    from matplotlib.patches import Rectangle

    confidence, predicted = trained.probabilities.max(1)
    right = predicted == digits.test_labels
    mistakes = (~right).nonzero().flatten()[:_MOST_MISTAKES]
    correct = right.nonzero().flatten()
    # half easy ones, half those it is least sure of, which say more
    unsure = correct[confidence[correct].argsort()][: (_SAMPLES - len(mistakes)) // 2]
    others = correct[~torch.isin(correct, unsure)][: _SAMPLES - len(mistakes) - len(unsure)]
    shown = torch.cat([mistakes, unsure, others]).tolist()
    columns = _SAMPLES // 2
    for place, index in enumerate(shown):
        x, y = place % columns * 1.18, place // columns * 1.62
        colour = _GOOD if right[index] else _BAD
        axes.imshow(digits.test_images[index, 0].numpy(), cmap='gray_r', vmin=0, vmax=1, extent=(x, x + 1, y + 1, y))
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=1 if right[index] else 2.4))
        text = f'{predicted[index]} ({confidence[index]:.0%})'
        if not right[index]:
            text = f'{predicted[index]} ({confidence[index]:.0%}), is {digits.test_labels[index]}'
        axes.text(x + 0.5, y + 1.08, text, size=9.5, color=colour, ha='center', va='top')
    axes.set(xlim=(0, columns * 1.18 - 0.18), ylim=(2 * 1.62 - 0.2, -0.05), aspect='equal', anchor='NW')
    axes.axis('off')
    _title(axes, 'Held-out images and predictions: mistakes (red), correct but least certain, others')
