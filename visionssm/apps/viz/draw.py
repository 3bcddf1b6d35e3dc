"""What was observed, as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionssm.files import write_whole
from visionssm.scans.plot import Walk, shades

_PANEL = 2.0  # inches
_LABEL = 1.35  # beside a row
_DPI = 110


class Row(NamedTuple):
    """Maps that share a colour scale.

    Attributes:
        label: Beside them, in a line or several.
        maps: (H, W) each.
        titles: Above them, as many.
        limits: Of the colour scale; None: from the least to the largest value.
    """

    label: str
    maps: Sequence[np.ndarray]
    titles: Sequence[str]
    limits: tuple[float, float] | None = None


def draw_maps(file: Path, rows: Sequence[Row], title: str) -> None:
    """Draw rows of maps, each with its colour bar; the file appears whole or not at all."""
    from matplotlib.figure import Figure

    columns = max(len(row.maps) for row in rows)
    heights = [max(x.shape[0] / x.shape[1] for x in row.maps) for row in rows]
    size = _LABEL + columns * _PANEL + 0.9, 0.5 + sum(_PANEL * h + 0.25 for h in heights)
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        low, high = row.limits or (min(x.min() for x in row.maps), max(x.max() for x in row.maps))
        axes = []
        for j, (values, name) in enumerate(zip(row.maps, row.titles, strict=True)):
            axis = figure.add_subplot(grid[i, j])
            drawn = axis.imshow(values, cmap='viridis', vmin=low, vmax=high, interpolation='nearest')
            axis.set_title(name, fontsize=8)
            axis.set(xticks=[], yticks=[])
            axes.append(axis)
        axes[0].set_ylabel(row.label, fontsize=9, rotation=0, ha='right', va='center', labelpad=8)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.02, aspect=12)
        bar.ax.tick_params(labelsize=7)
    _save(figure, file)


def draw_walks(file: Path, image: np.ndarray, walks: Sequence[np.ndarray], grid: tuple[int, int], title: str) -> None:
    """Draw every walk over the image: from dark to light, a dot at the start, thin lines for jumps.

    Args:
        file: To write, whole or not at all.
        image: RGB from 0 to 255, (H, W, 3).
        walks: Row-major patches in visiting order.
        grid: Rows and columns of patches.
        title: Above all.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    height, width = grid
    columns = min(4, len(walks))
    rows = -(-len(walks) // columns)
    figure = Figure(figsize=(2.8 * columns, 0.45 + rows * (2.8 * height / width + 0.2)), layout='constrained')
    figure.suptitle(title, fontsize=11)
    pale = 0.45 * image.mean(-1, keepdims=True).repeat(3, -1) + 0.55 * 255
    for k, path in enumerate(walks):
        axis = figure.add_subplot(rows, columns, k + 1)
        axis.imshow(pale.astype(np.uint8), extent=(0, width, height, 0))
        walk = Walk.of(path, width)
        segments = np.stack([walk.points[:-1], walk.points[1:]], 1)
        colours = shades(walk.progress) / 255
        for part, line in ((walk.jumps, 0.5), (~walk.jumps, 1.8)):
            axis.add_collection(LineCollection(segments[part], colors=colours[part], linewidths=line), autolim=False)
        axis.plot(*walk.points[0], 'o', color='black', markersize=5, markeredgecolor='white')
        axis.set_title(f'direction {k}', fontsize=9)
        axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    _save(figure, file)


def draw_over(file: Path, image: np.ndarray, panels: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw maps in [0, 1] over the image, side by side."""
    from matplotlib.figure import Figure

    height, width = image.shape[:2]
    figure = Figure(figsize=(3.2 * len(panels), 3.2 * height / width + 0.35), layout='constrained')
    for k, (title, values) in enumerate(panels):
        axis = figure.add_subplot(1, len(panels), k + 1)
        axis.imshow(image, extent=(0, width, height, 0))
        axis.imshow(values, cmap='viridis', alpha=0.65, vmin=0, vmax=1, extent=(0, width, height, 0))
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    _save(figure, file)


def _save(figure, file: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=_DPI, facecolor='white')
    write_whole(file, picture.getvalue())
