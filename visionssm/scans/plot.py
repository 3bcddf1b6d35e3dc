"""Pictures of walks over a grid: what each of them shows, and a plot of scan orders with a panel per direction."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from visionssm.files import write_whole

from .registry import ScanOrder, get_scan, list_scans

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# lengths in inches
_PANEL, _GAP, _MARGIN, _LEGEND, _TITLE, _LINE, _LABEL = 1.5, 0.25, 0.45, 0.5, 0.25, 0.15, 0.6
_COLUMNS = 8
_INK, _FAINT, _UNVISITED = '#1b1f24', '#5b6570', 0.94
_EXAMPLES = {'local': {'name': 'local', 'window': 4}}  # the default window, 7, shows little on a small grid
_STOPS = ((42, 12, 140), (170, 36, 150), (244, 136, 73))  # dark to light, distinguishable to the colour-blind
WALK_LEGEND = 'dot: start, arrow: end; dark to light: first to last step; thin: jump'


class Walk(NamedTuple):
    """What a picture shows of a path over a grid, in cells from the top left corner.

    Attributes:
        points: Centres of the visited cells as x and y, (T, 2).
        jumps: Whether a step ends on a cell that does not touch the one before, (T - 1,).
        progress: Of each step, from 0, the first, to 1, the last, (T - 1,).
    """

    points: np.ndarray
    jumps: np.ndarray
    progress: np.ndarray

    @classmethod
    def of(cls, path: np.ndarray, width: int) -> Walk:
        """The walk along row-major token positions (T,) of a grid with `width` columns."""
        cells = np.stack([path % width, path // width], 1)
        steps = len(path) - 1
        return cls(cells + 0.5, abs(np.diff(cells, axis=0)).max(1) > 1, np.arange(steps) / max(steps - 1, 1))


def shades(progress: np.ndarray) -> np.ndarray:
    """Colours of points along a walk, (T,) from 0 to 1: red, green and blue, (T, 3) integers from 0 to 255."""
    stops = np.array(_STOPS)
    place = np.minimum(2 * progress, 1.999)
    first, share = place.astype(int), (place % 1)[:, None]
    return np.round(stops[first] + (stops[first + 1] - stops[first]) * share).astype(int)


def draw_walk(
    axes: Axes,
    path: np.ndarray,
    height: int,
    width: int,
    corner: tuple[float, float] = (0, 0),
    cell: float = 1,
    span: tuple[float, float] = (0, 1),
) -> None:
    """Draw one path over its grid: tinted cells, the line, a dot at the start and an arrow at the end.

    Args:
        axes: Where to draw, y downwards.
        path: Row-major token positions, (T,).
        height: Rows of the grid.
        width: Columns of the grid.
        corner: Top left corner, x and y.
        cell: Side of a cell.
        span: Where on the colour scale the path begins and ends, for part of a longer walk.
    """
    from matplotlib.collections import LineCollection

    walk = Walk.of(path, width)
    start, length = span[0], span[1] - span[0]
    tints = np.full((height * width, 3), _UNVISITED)
    tints[path] = 1 - 0.42 * (1 - _colours(start + length * np.linspace(0, 1, len(path))))
    x0, y0 = corner
    x1, y1 = x0 + width * cell, y0 + height * cell
    axes.imshow(tints.reshape(height, width, 3), extent=(x0, x1, y1, y0), interpolation='nearest', aspect='auto')
    grid = [[(x0 + i * cell, y0), (x0 + i * cell, y1)] for i in range(width + 1)]
    grid += [[(x0, y0 + i * cell), (x1, y0 + i * cell)] for i in range(height + 1)]
    axes.add_collection(LineCollection(grid, colors='white', linewidths=0.8), autolim=False)

    points = np.array(corner) + cell * walk.points
    segments = np.stack([points[:-1], points[1:]], 1)
    colours = _colours(start + length * walk.progress)
    for part, line, alpha in ((walk.jumps, 0.6, 0.55), (~walk.jumps, 2.0, 1.0)):
        axes.add_collection(
            LineCollection(segments[part], colors=colours[part], linewidths=line, alpha=alpha, capstyle='round'),
            autolim=False,
        )
    axes.plot(*points[0], 'o', color=_INK, markersize=6.5, markeredgecolor='white', markeredgewidth=0.8)
    if len(points) > 1:
        back = points[-2] - points[-1]
        tail = points[-1] + 0.8 * cell * back / max(np.hypot(*back), cell)
        arrow = {'arrowstyle': '-|>', 'color': _INK, 'shrinkA': 0, 'shrinkB': 0, 'mutation_scale': 12}
        axes.annotate('', points[-1], tail, arrowprops=arrow)


def _colours(progress: np.ndarray) -> np.ndarray:
    return shades(progress) / 255


def plot_scans(
    file: str | os.PathLike[str],
    names: Iterable[str | Mapping[str, Any] | ScanOrder] | None = None,
    height: int = 8,
    width: int = 8,
) -> None:
    """Draw scan orders on a small grid. Needs matplotlib.

    Each panel is one direction. Cells and path go from dark (first step) to light (last step); the dot is the start,
    the arrow the end; thin lines are jumps, grey cells are not visited. An order with more steps than tokens continues
    in further panels.

    Args:
        file: Picture to write, whole or not at all; its suffix sets the format: .png, .svg, .pdf and others.
        names: Orders to draw, as `get_scan` takes them; None: every registered one.
        height: Rows of the grid, from 1.
        width: Columns of the grid, from 1.

    Raises:
        ValueError: If an order is unknown, a size is below 1, or matplotlib cannot write the format.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    file = Path(file)
    orders = [get_scan(name) for name in ([_EXAMPLES.get(n, n) for n in list_scans()] if names is None else names)]
    if not orders:
        raise ValueError('names is empty; give at least one scan order, or None for all')
    figure = Figure()
    formats = figure.canvas.get_supported_filetypes()
    suffix = file.suffix[1:].lower()
    if suffix not in formats:
        raise ValueError(f'{file} ends in {file.suffix!r}; allowed are {", ".join("." + name for name in formats)}')

    rows = _rows_of_blocks([(order, _panels(order, height, width)) for order in orders])
    cell = min(_PANEL / width, 2 * _PANEL / height)
    captions = [_TITLE + _LINE * max(len(_meaning(*block)) for block in row) + 0.1 for row in rows]
    columns = max(4, *(sum(len(panels) for _, panels in row) for row in rows))  # 4: the legend needs the room
    size = (
        2 * _MARGIN + columns * (_PANEL + _GAP) - _GAP,
        2 * _MARGIN + _LEGEND + sum(captions) + len(rows) * (height * cell + _LABEL) - 0.3,
    )
    figure.set_size_inches(size)
    axes = figure.add_axes((0, 0, 1, 1), autoscale_on=False)
    axes.axis('off')
    _draw_legend(axes, height, width)
    top = _MARGIN + _LEGEND
    for row, caption in zip(rows, captions, strict=True):
        left = _MARGIN
        for order, panels in row:
            title = order.describe()
            axes.text(left, top, title, size=11, weight='bold', color=_INK, va='top')
            meaning = '\n'.join(_meaning(order, panels))
            axes.text(left, top + _TITLE, meaning, size=8, color=_FAINT, va='top', linespacing=1.25)
            for label, path, span in panels:
                corner = (left + (_PANEL - width * cell) / 2, top + caption)
                draw_walk(axes, path, height, width, corner, cell, span)
                below = corner[1] + height * cell + 0.06
                axes.text(left + _PANEL / 2, below, label, size=7, color=_FAINT, ha='center', va='top')
                left += _PANEL + _GAP
        top += caption + height * cell + _LABEL

    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))  # one inch is 1: imshow has set limits of its own

    picture = io.BytesIO()  # formats of text need a file that can be searched
    figure.savefig(picture, format=suffix, dpi=130, facecolor='white')
    write_whole(file, picture.getvalue())


_Panels = list[tuple[str, np.ndarray, tuple[float, float]]]  # label, token positions, span of colours


def _panels(order: ScanOrder, height: int, width: int) -> _Panels:
    table = order.table(height, width)
    steps, tokens = table.shape[1], height * width
    if order.zeros:  # the zero token is nowhere on the grid
        return [(f'direction {k}', path[path < tokens], (0.0, 1.0)) for k, path in enumerate(table)]
    panels = []
    for k, path in enumerate(table):
        for first in range(0, steps, tokens):
            last = min(first + tokens, steps) - 1
            label = f'direction {k}' if steps <= tokens else f'steps {first} to {last}'
            panels.append((label, path[first : last + 1], (first / max(steps - 1, 1), last / max(steps - 1, 1))))
    return panels


def _rows_of_blocks(blocks: list[tuple[ScanOrder, _Panels]]) -> list[list[tuple[ScanOrder, _Panels]]]:
    """First fit: each block goes to the first row with room for its panels."""
    rows: list[list[tuple[ScanOrder, _Panels]]] = []
    for block in blocks:
        for row in rows:
            if sum(len(panels) for _, panels in (*row, block)) <= _COLUMNS:
                row.append(block)
                break
        else:
            rows.append([block])
    return rows


def _meaning(order: ScanOrder, panels: _Panels) -> list[str]:
    """Lines of the meaning, as wide as the panels."""
    inches = len(panels) * (_PANEL + _GAP) - _GAP
    return textwrap.wrap(order.strategy.meaning, round(inches * 15))


def _draw_legend(axes: Axes, height: int, width: int) -> None:
    colours = _colours(np.linspace(0, 1, 256))
    axes.imshow(colours[None], extent=(_MARGIN, _MARGIN + 1.5, _MARGIN + 0.16, _MARGIN), aspect='auto')
    entries = (
        'first to last step',
        '\u25cf start',
        '\u2192 end',
        'thin line: jump',
        'grey: not visited',
        f'{height} x {width}',
    )
    axes.text(_MARGIN + 1.6, _MARGIN + 0.08, (4 * ' ').join(entries), size=8.5, color=_INK, va='center')
