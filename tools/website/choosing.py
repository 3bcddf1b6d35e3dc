"""Tables and plots for choosing a model. What the authors report and what is counted or measured here stay apart."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from timm.models import get_pretrained_cfg

from visionssm.catalog.models import list_rows, model_cost, model_names, tag_record
from visionssm.hub.card import table
from visionssm.weights.published import FAMILIES, family_of, model_facts
from visionssm.weights.records import license_text

SPEEDS = Path(__file__).resolve().parents[2] / 'results/published_cpu.json'
# Okabe and Ito's colours, which the colour-blind can tell apart, without yellow and black; then other shapes
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c')
_SHAPES = ('circle', 'square', 'diamond', 'triangle')
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 380, 46, 12, 12, 46


class Point(NamedTuple):
    """A model with an accuracy that its authors report.

    Attributes:
        name: Model and tag.
        family: Key of its family.
        top1: Reported, in percent.
        params: Counted.
        macs: Counted at the size that the accuracy is for; None: it is not the size of the count.
        speed: Measured, images/s; None: not measured.
        plain: Whether it was trained in the plain way, on ImageNet-1k at 224; its tag is `in1k` then.
    """

    name: str
    family: str
    top1: float
    params: int
    macs: int | None
    speed: float | None
    plain: bool


def speeds() -> tuple[str, dict[str, float]]:
    """How and where it was measured, and images/s by model and image side, `name@side`."""
    report = json.loads(SPEEDS.read_text(encoding='utf-8'))
    machine, first = report['machine'], report['results'][0]
    threads = 'one thread' if first['threads'] == 1 else f'{first["threads"]} threads'
    clock = 'CPU time' if machine.get('clock') == 'cpu' else 'wall time'
    torch = machine['torch'].partition('+')[0]
    where = f'fp32, batches of {first["batch"]}, {clock} of {threads} of an {machine["cpu"]}, torch {torch}'
    return where, {row['model']: row['images_per_second'] for row in report['results']}


def points() -> list[Point]:
    """All published classifiers whose accuracy is known."""
    measured, found = speeds()[1], []
    for name in model_names(tags=True):
        config = get_pretrained_cfg(name)
        top1, model = tag_record(config).metrics.get('top-1'), name.partition('.')[0]
        if top1 is None:
            continue
        side, base = config.input_size[-1], get_pretrained_cfg(model).input_size[-1]
        facts = model_facts(model)
        params, macs = (facts.params, facts.macs) if facts else model_cost(model)
        plain = config.tag == 'in1k' and side == 224
        speed = measured.get(f'{model}@{side}')
        found.append(Point(name, family_of(model).key, top1, params, macs if side == base else None, speed, plain))
    return found


def table_of_models() -> str:
    """A row per model, with its default weights."""
    where, measured = speeds()
    headings = {
        'model': 'model',
        'top-1 reported': 'top-1, reported (%)',
        'params (M)': 'parameters, counted (M)',
        'GMACs': 'multiply-adds, counted (G)',
        'speed': 'images/s, measured',
        'input': 'input',
        'licence': 'licence of the weights',
    }
    rows = []
    for row in list_rows(cost=True):
        name, size = row['model'].partition('.')[0], row['input'].split('x')[1]
        row['speed'] = f'{measured[key]:.1f}' if (key := f'{name}@{size}') in measured else ''
        row['model'] = f'[`{name}`](cards/{family_of(name).key}.md)'
        row['input'] = size
        rows.append([row[key] for key in headings])
    note = f'Speed: {where}; `results/{SPEEDS.name}`.'
    return f'<div class="models" markdown>\n\n{table(headings.values(), rows)}\n\n</div>\n\n{note}'


def licences() -> str:
    """A row per family and licence."""
    rows = []
    for key, family in FAMILIES.items():
        records = [tag_record(get_pretrained_cfg(name)) for name in model_names(f'{key}*', tags=True) if '.' in name]
        about: dict[tuple[str, str], int] = {}
        for record in [*records, *(file for file in family.files if file.method)]:
            what = (license_text(record.license), record.doubt)
            about[what] = about.get(what, 0) + 1
        rows += [
            [f'[{family.title}](cards/{key}.md)', license, str(count), doubt]
            for (license, doubt), count in (about or {('no weights are published', ''): 0}).items()
        ]
    return table(['family', 'licence', 'files', 'why it is unclear'], rows)


def plots() -> str:
    """Accuracy against parameters, multiply-adds and speed."""
    every = points()
    where = speeds()[0]
    families = {point.family: None for point in every}
    marks = {key: (_COLOURS[i % len(_COLOURS)], _SHAPES[i // len(_COLOURS)]) for i, key in enumerate(families)}
    legend = ''.join(
        f'<button type="button" data-family="{key}"><svg viewBox="-6 -6 12 12" aria-hidden="true">'
        f'{_mark(0, 0, marks[key], True)}</svg>{html.escape(FAMILIES[key].title)}</button>'
        for key in families
    )
    axes: list[tuple[str, str, Callable[[Point], float | None]]] = [
        ('parameters, counted (M)', 'parameters', lambda point: point.params / 1e6),
        ('multiply-adds, counted (G)', 'multiply-adds', lambda point: point.macs and point.macs / 1e9),
        ('images per second on a CPU, measured', 'speed on a CPU', lambda point: point.speed),
    ]
    figures = []
    for label, short, value in axes:
        shown = [(point, x) for point in every if (x := value(point))]
        caption = f'Top-1 as reported against {short}: {len(shown)} of {len(every)} published classifiers.'
        if short.startswith('speed'):
            caption += f' Measured: {where}.'
        figures.append(f'<figure>{_plot(shown, label, marks)}<figcaption>{caption}</figcaption></figure>')
    note = (
        '<p>Filled: the plain recipe, ImageNet-1k at 224 pixels. Hollow: distilled, trained for longer, on more '
        'data or on larger images. '
        'Point at a mark for its name; a family in the legend stands out when chosen.</p>'
    )
    return f'<div class="plots"><div class="legend">{legend}</div>{"".join(figures)}</div>\n\n{note}'


def _plot(shown: Sequence[tuple[Point, float]], label: str, marks: dict[str, tuple[str, str]]) -> str:
    low, high = min(x for _, x in shown) / 1.15, max(x for _, x in shown) * 1.15
    bottom = 2 * math.floor(min(point.top1 for point, _ in shown) / 2)
    top = 2 * math.ceil(max(point.top1 for point, _ in shown) / 2)

    def across(x: float) -> float:
        return _LEFT + math.log(x / low) / math.log(high / low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (top - y) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for y in range(bottom, top + 1, 2):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y}</text>')
    for x in _ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
        parts.append(f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{label}</text>')
    place = f'transform="translate(12 {middle}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text {place}>top-1, reported by the authors (%)</text>')
    for key, mark in marks.items():
        own = sorted((x, point) for point, x in shown if point.family == key)
        line = ' '.join(f'{across(x):.1f},{down(point.top1):.1f}' for x, point in own if point.plain)
        group = f'<polyline points="{line}" stroke="{mark[0]}"/>'
        for x, point in own:
            title = f'{point.name}: {point.top1:.1f} % reported, {x:.3g} {label.partition(",")[0]}'
            group += f'<g><title>{title}</title>{_mark(across(x), down(point.top1), mark, point.plain)}</g>'
        parts.append(f'<g class="family" data-family="{key}">{group}</g>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Top-1 as reported against {label}">'
        f'{"".join(parts)}</svg>'
    )


def _ticks(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times powers of ten."""
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (x for step in (1, 2, 5) if low <= (x := step * 10.0**exponent) <= high)


def _mark(x: float, y: float, mark: tuple[str, str], filled: bool) -> str:
    colour, shape = mark
    style = f'stroke="{colour}" ' + (f'fill="{colour}"' if filled else 'class="hollow"')
    if shape == 'circle':
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style}/>'
    corners = {
        'square': ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        'diamond': ((0, -5), (5, 0), (0, 5), (-5, 0)),
        'triangle': ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)),
    }[shape]
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}" {style}/>'
