"""A comparison as a table, as files and as a picture."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionssm.catalog.tables import layout
from visionssm.files import write_whole
from visionssm.train.log import write_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart, and shapes for more than there are colours
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#1b1f24')
_SHAPES = 'osD^vPX'
_FAINT, _LINE = '#57606a', '#d5dae0'


@dataclass(frozen=True)
class Row:
    """What is known of one side of a comparison.

    Attributes:
        name: As it was asked for.
        input: Channels, height and width.
        parameters: Their number, with a classifier for the data.
        macs: Multiply-adds for one image.
        images_per_second: Median throughput of inference.
        memory_mib: Peak of inference beyond weights and images; None: not known on this device.
        training_memory_mib: Peak of a forward and a backward pass; None: not known, or nothing was trained.
        accuracies: Per seed, from 0 to 1; None: the loss was not finite.
        seconds: Of training, per seed.
    """

    name: str
    input: tuple[int, int, int]
    parameters: int
    macs: float
    images_per_second: float
    memory_mib: float | None
    training_memory_mib: float | None
    accuracies: tuple[float | None, ...]
    seconds: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean accuracy; None if a run has none."""
        return None if None in self.accuracies else statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the accuracies; None of less than two."""
        return statistics.stdev(self.accuracies) if self.mean is not None and len(self.accuracies) > 1 else None

    def cells(self) -> dict[str, str]:
        """The row of a table that people read."""
        cells = {
            'model': self.name,
            'accuracy (%)': self._accuracy(),
            'input': 'x'.join(map(str, self.input)),
            'params (M)': f'{self.parameters / 1e6:.2f}',
            'GMACs': f'{self.macs / 1e9:.3f}',
            'images/s': f'{self.images_per_second:.1f}',
            'memory (MiB)': _number(self.memory_mib),
        }
        if self.seconds:
            cells['training memory (MiB)'] = _number(self.training_memory_mib)
            cells['training (s)'] = f'{statistics.mean(self.seconds):.0f}'
        return cells

    def _accuracy(self) -> str:
        if self.mean is None:
            return f'{self.accuracies.count(None)} of {len(self.accuracies)} diverged'
        spread = '' if self.deviation is None else f' ± {100 * self.deviation:.2f}'
        return f'{100 * self.mean:.2f}{spread}'


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}'


def columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table."""
    cells = [row.cells() for row in rows]
    headings = list(max(cells, key=len))
    return headings, [[line.get(heading, '') for heading in headings] for line in cells]


def write(output: Path, rows: Sequence[Row], notes: Sequence[str], settings: dict[str, Any]) -> None:
    """Write `compare.md`, `compare.csv`, `compare.json` and `compare.png`, each whole."""
    text = '\n'.join([layout(*columns(rows), markdown=True), '', *notes]) + '\n'
    write_whole(output / 'compare.md', text)
    table = [{**asdict(row), 'accuracy': row.mean, 'deviation': row.deviation} for row in rows]
    write_whole(
        output / 'compare.json', json.dumps({'rows': table, 'notes': notes, 'settings': settings}, indent=1) + '\n'
    )
    flat = [{key: _flat(value) for key, value in row.items()} for row in table]
    write_table(output / 'compare.csv', tuple(flat[0]), [list(row.values()) for row in flat])
    draw(rows, notes, output / 'compare.png')


def _flat(value: Any) -> Any:
    if isinstance(value, tuple):
        return ' '.join('' if part is None else str(part) for part in value)
    return '' if value is None else value


def draw(rows: Sequence[Row], notes: Sequence[str], file: Path) -> None:
    """Draw accuracy by model, against multiply-adds and against throughput. Needs matplotlib.

    The first panel, which names the models beside their marks, is the legend of the others.
    """
    from matplotlib.figure import Figure

    several = any(len(row.accuracies) > 1 for row in rows)
    height = 2.6 + 0.34 * max(len(rows), 5)
    figure = Figure(figsize=(13, height), facecolor='white', layout='constrained')
    first, *others = figure.subplots(1, 3, gridspec_kw={'width_ratios': (1.25, 1, 1)}, sharex=False)
    # after seven, the same colours with other shapes
    named = [
        (row, _COLOURS[i % len(_COLOURS)], _SHAPES[(i + i // len(_COLOURS)) % len(_SHAPES)])
        for i, row in enumerate(rows)
    ]
    for place, (row, colour, shape) in enumerate(named):
        _mark(first, row, colour, shape, place, vertical=False)
    first.set(ylim=(len(rows) - 0.4, -0.6), xlabel='accuracy (%); thin: single runs' if several else 'accuracy (%)')
    first.set_yticks(range(len(rows)), [row.name for row in rows])
    for axes, label, value in zip(
        others,
        ('multiply-adds per image (G)', 'images per second'),
        (lambda row: row.macs / 1e9, lambda row: row.images_per_second),
        strict=True,
    ):
        for row, colour, shape in named:
            _mark(axes, row, colour, shape, value(row), vertical=True)
        axes.set_xlabel(label)
        _scale(axes, [value(row) for row in rows])
    others[0].set_ylabel('accuracy (%)')
    for axes in (first, *others):
        axes.grid(color=_LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
        axes.tick_params(labelsize=11)
        axes.xaxis.label.set_size(12)
        axes.yaxis.label.set_size(12)
    figure.suptitle(textwrap.fill(notes[0], 125), x=0.01, ha='left', size=12, color=_FAINT)
    write_whole(file, lambda stream: figure.savefig(stream, dpi=110, format='png'))


def _mark(axes: Axes, row: Row, colour: str, shape: str, place: float, vertical: bool) -> None:
    """A row's mean with its deviation, and beside the name the single runs, too."""
    if row.mean is None:
        if not vertical:
            axes.text(0.02, place, 'diverged', transform=axes.get_yaxis_transform(), size=11, color=colour, va='center')
        return
    mean, spread = 100 * row.mean, None if row.deviation is None else 100 * row.deviation
    style = {'color': colour, 'marker': shape, 'markersize': 9, 'capsize': 4, 'elinewidth': 1.6, 'linestyle': ''}
    if vertical:
        axes.errorbar([place], [mean], yerr=spread, **style)
        return
    axes.errorbar([mean], [place], xerr=spread, **style)
    if len(row.accuracies) > 1:
        axes.plot(
            [100 * x for x in row.accuracies], [place + 0.25] * len(row.accuracies), '|', color=colour, markersize=7
        )


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic scale with plain numbers, or room on both sides of values that hardly differ."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if high < 2.5 * low:
        room = max(high - low, 0.1 * high)
        axes.set_xlim(max(0, low - room), high + room)
        axes.locator_params(axis='x', nbins=5)
        return
    axes.set_xscale('log')
    axes.set_xlim(low / 1.4, high * 1.4)
    wide = high > 30 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
