"""Pictures for the model cards as SVG text, the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from visionssm.scans import get_scan, plot

_INK, _FAINT, _EDGE = '#1b1f24', '#5b6570', '#c9d0d8'
_FONT = 'font-family="Helvetica, Arial, sans-serif"'
# the first entry with a word that the text starts with gives fill and border of a box
_FILLS = (
    (('scan', 'VSSS', 'A2SSM', 'reverse'), '#efe3fb', '#7a2f8f'),
    (('window attention', 'dilated attention', 'gather'), '#fde3e1', '#b0413e'),
    (('depthwise', 'causal', 'anticausal', 'upsample'), '#ddf3e4', '#2f7d4f'),
    (('Linear', 'conv'), '#dcebfa', '#2c6aa6'),
    (('SiLU', 'GELU', '\u00d7', 'squeeze', 'mean'), '#fdf0cf', '#a87b16'),
    (('LayerNorm', 'RMSNorm', 'BatchNorm'), '#eceff2', '#7c8794'),
)
_REFERENCE = ('#ffffff', _INK)  # a box that has a diagram of its own


# diagrams of blocks; lengths in pixels

_BOX, _GAP, _SPLIT, _BETWEEN, _BYPASS, _JOIN = 26, 14, 12, 16, 14, 9


class _Size(NamedTuple):
    left: float
    right: float
    height: float


def draw_blocks(blocks: Mapping[str, list[Any]]) -> str:
    """Diagrams side by side.

    Args:
        blocks: Title to description. A list is a sequence from top to bottom; a text is a box; a tuple
            (sign, branch, branch, ...) has branches that start from one line and join under the sign, '+', '\u00d7' or
            a word; an empty branch is a plain line, the first one of a residual connection.
    """
    top, pad = 52, 18
    sizes = [_measure(parts) for parts in blocks.values()]
    # a little more than the estimate of the title's width
    widths = [max(s.left + s.right, 8.2 * len(title)) + 2 * pad for title, s in zip(blocks, sizes, strict=True)]
    height = top + max(s.height for s in sizes) + 40
    out, x = [], 12.0
    for (title, parts), size, width in zip(blocks.items(), sizes, widths, strict=True):
        out.append(f'<rect x="{x:g}" y="12" width="{width:g}" height="{height - 24:g}" rx="8" fill="#f8fafb"/>')
        out.append(_text(x + width / 2, 34, title, 14, weight='bold'))
        axis = x + (width - size.left - size.right) / 2 + size.left
        bottom = top + _GAP + size.height
        out.append(_line(axis, top - 6, axis, top + _GAP))
        out += _draw(parts, axis, top + _GAP, set(blocks))
        out.append(_arrow(axis, bottom, axis, bottom + 16))
        x += width + 12
    return _svg(x, height, out)


def _measure(part: Any) -> _Size:
    if isinstance(part, str):
        half = (6.7 * len(part) + 20) / 2
        return _Size(half, half, _BOX)
    if isinstance(part, list):
        if not part:
            return _Size(4, 4, 0)
        sizes = [_measure(x) for x in part]
        height = sum(s.height for s in sizes) + _GAP * (len(sizes) - 1)
        return _Size(max(s.left for s in sizes), max(s.right for s in sizes), height)
    _, *branches = part
    sizes = [_measure(x) for x in branches]
    axes, width = _axes(branches, sizes)
    height = max(s.height for s in sizes) + 2 * _SPLIT + 2 * _JOIN
    return _Size(
        axes[-1] if not branches[0] else width / 2, width - (axes[-1] if not branches[0] else width / 2), height
    )


def _axes(branches: Sequence[list[Any]], sizes: Sequence[_Size]) -> tuple[list[float], float]:
    """Where the branches run, from the left edge of all, and their width together."""
    axes, x = [], 0.0
    for branch, size in zip(branches, sizes, strict=True):
        axes.append(x + size.left)
        x += size.left + size.right + (_BYPASS if not branch else _BETWEEN)
    return axes, x - _BETWEEN


def _draw(part: Any, axis: float, y: float, titles: set[str]) -> Iterator[str]:
    if isinstance(part, str):
        yield from _box(part, axis, y, titles)
    elif isinstance(part, list):
        for i, x in enumerate(part):
            if i:
                line = _arrow if isinstance(x, str) else _line
                yield line(axis, y - _GAP, axis, y)
            yield from _draw(x, axis, y, titles)
            y += _measure(x).height + _GAP
    else:
        yield from _draw_branches(part, axis, y, titles)


def _draw_branches(part: tuple[Any, ...], axis: float, y: float, titles: set[str]) -> Iterator[str]:
    sign, *branches = part
    sizes = [_measure(x) for x in branches]
    axes, _ = _axes(branches, sizes)
    own = _measure(part)
    join = y + own.height - _JOIN
    reach = _JOIN if len(sign) == 1 else 3.4 * len(sign) + 9
    for branch, size, place in zip(branches, sizes, axes, strict=True):
        x = axis - own.left + place
        first = y + _SPLIT
        if abs(x - axis) > 0.5:
            yield _line(axis, y, x, y)
        if branch:
            yield (_arrow if isinstance(branch[0], str) else _line)(x, y, x, first)
            yield from _draw(branch, x, first, titles)
        else:
            yield _line(x, y, x, first)
        last = first + size.height
        if abs(x - axis) > 0.5:
            yield _line(x, last, x, join)
            yield _arrow(x, join, axis + (reach if x > axis else -reach), join)
        else:
            yield _arrow(x, last, x, join - _JOIN)
    if len(sign) == 1:
        yield f'<circle cx="{axis:g}" cy="{join:g}" r="{_JOIN}" fill="#ffffff" stroke="{_INK}" stroke-width="1.2"/>'
        arm = 4.5
        for dx, dy in ((arm, 0), (0, arm)) if sign == '+' else ((arm * 0.7, arm * 0.7), (arm * 0.7, -arm * 0.7)):
            yield _line(axis - dx, join - dy, axis + dx, join + dy)
    else:
        yield (
            f'<rect x="{axis - reach:g}" y="{join - _JOIN:g}" width="{2 * reach:g}" height="{2 * _JOIN}" '
            f'rx="{_JOIN}" fill="#ffffff" stroke="{_INK}" stroke-width="1.2"/>'
        )
        yield _text(axis, join + 4, sign, 11)


def _box(text: str, axis: float, y: float, titles: set[str]) -> Iterator[str]:
    half = _measure(text).left
    fills = ((fill, edge) for words, fill, edge in _FILLS if text.startswith(words))
    fill, edge = _REFERENCE if text in titles else next(fills, _REFERENCE)
    yield (
        f'<rect x="{axis - half:g}" y="{y:g}" width="{2 * half:g}" height="{_BOX}" rx="5" '
        f'fill="{fill}" stroke="{edge}" stroke-width="1.2"/>'
    )
    yield _text(axis, y + 17, text, 12)


# scan paths

_PANEL, _SPACE = 132, 36


class Route(NamedTuple):
    """One walk over a square grid.

    Attributes:
        scan: Order, as `get_scan` takes it.
        direction: Which of its directions.
        side: Rows and columns.
        window: Walk each so many tokens backwards, one window after the other; 0: as the order says.
    """

    scan: Any
    direction: int
    side: int
    window: int = 0


def draw_paths(paths: Mapping[str, Route]) -> str:
    """Walks side by side under their captions, from dark (first step) to light; thin lines are jumps."""
    width = max(_SPACE + len(paths) * (_PANEL + _SPACE), 440)
    out = []
    for i, (caption, route) in enumerate(paths.items()):
        x = _SPACE + i * (_PANEL + _SPACE)
        out.append(_text(x + _PANEL / 2, 28, caption, 12, weight='bold'))
        out += _draw_route(route, x, 40)
    out.append(_text(_SPACE, _PANEL + 64, plot.WALK_LEGEND, 11, anchor='start', colour=_FAINT))
    return _svg(width, _PANEL + 78, out)


def _draw_route(route: Route, left: float, top: float) -> Iterator[str]:
    tokens = get_scan(route.scan).table(route.side, route.side)[route.direction]
    runs = [tokens]
    if route.window:
        runs = [tokens[i : i + route.window][::-1] for i in range(0, len(tokens), route.window)]
    cell = _PANEL / route.side
    yield f'<rect x="{left:g}" y="{top:g}" width="{_PANEL}" height="{_PANEL}" fill="#f1f3f5"/>'
    for i in range(1, route.side):
        yield _line(left + i * cell, top, left + i * cell, top + _PANEL, '#ffffff')
        yield _line(left, top + i * cell, left + _PANEL, top + i * cell, '#ffffff')
    for run in runs:
        walk = plot.Walk.of(run, route.side)
        points = (walk.points * cell + (left, top)).tolist()
        for k, (jump, shade) in enumerate(zip(walk.jumps, plot.shades(walk.progress), strict=True)):
            style = 'stroke-width="0.8" opacity="0.45"' if jump else 'stroke-width="2.6" stroke-linecap="round"'
            (x0, y0), (x1, y1) = points[k : k + 2]
            colour = '#' + bytes(shade.tolist()).hex()
            yield f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="{colour}" {style}/>'
        x, y = points[0]
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="{_INK}" stroke="#ffffff"/>'
        (x0, y0), (x1, y1) = points[-2:]
        yield _arrow(round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1), head_only=True)


# SVG


def _svg(width: float, height: float, parts: list[str]) -> str:
    return '\n'.join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" {_FONT}>',
            f'<rect width="{width:g}" height="{height:g}" rx="10" fill="#ffffff"/>',
            *parts,
            '</svg>\n',
        ]
    )


def _text(
    x: float, y: float, text: str, size: int, weight: str = 'normal', anchor: str = 'middle', colour: str = _INK
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{text}</text>'
    )


def _line(x0: float, y0: float, x1: float, y1: float, colour: str = _INK) -> str:
    return f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{colour}" stroke-width="1.2"/>'


def _arrow(x0: float, y0: float, x1: float, y1: float, head_only: bool = False) -> str:
    """A line with a head at its end; it runs along an axis."""
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    size = 7 if head_only else 5
    x2, y2 = x1 - size * dx, y1 - size * dy
    half = size * 0.6
    head = f'M{x1:g} {y1:g}L{x2 - half * dy:g} {y2 - half * dx:g}L{x2 + half * dy:g} {y2 + half * dx:g}Z'
    line = '' if head_only else _line(x0, y0, x2, y2)
    return f'{line}<path d="{head}" fill="{_INK}"/>'
