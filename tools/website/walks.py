"""The tables of all scan orders at all small sizes and on larger squares, packed for the playground.

An order is a stream of 16-bit numbers: for every one of `SIZES`, for every direction, a code and what it asks
for. 0: steps, and that many differences between positions; 1 + 2 j: direction j backwards; 2 + 2 j: direction j of the
transposed grid, transposed. The stream is deflated and written as base64. `docs/assets/walks.js` reads it, and
`tools/check_walks.py` compares what it reads with the registry.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from visionssm.scans import ScanOrder, get_scan, list_scans
from visionssm.scans.plot import shades

SIDE, SQUARE = 32, 64  # heights and widths go up to SIDE, those of squares up to SQUARE
SIZES = [
    *((height, width) for height in range(1, SIDE + 1) for width in range(1, SIDE + 1)),
    *((side, side) for side in range(SIDE + 1, SQUARE + 1)),
]
_VALUES = (2, 4, 8)  # of an integer argument, besides its default


def orders() -> Iterator[ScanOrder]:
    """Every order with its defaults, then with other numbers of directions and values of one integer argument."""
    for name in list_scans():
        usual = get_scan(name)
        yield usual
        shown = {_rows(usual)}
        specs: list[dict[str, Any]] = [{'directions': count} for count in usual.strategy.directions[1:]]
        for key, default in usual.strategy.args.items():
            if type(default) is int and key != 'seed':  # another seed looks alike
                specs += [{key: value} for value in _VALUES]
        for spec in specs:
            try:
                order = get_scan({'name': name, **spec})
            except ValueError:  # out of this argument's range
                continue
            rows = _rows(order)
            if not any(rows <= other for other in shown):
                shown.add(rows)
                yield order


def _rows(order: ScanOrder) -> frozenset[bytes]:
    return frozenset(row.tobytes() for row in order.table(9, 12))


def pack(order: ScanOrder) -> str:
    """The stream of an order."""
    parts: list[np.ndarray] = []
    seen: dict[tuple[int, int], list[np.ndarray]] = {}
    for height, width in SIZES:
        paths = seen[height, width] = []
        for path in order.table(height, width).astype(np.int16):
            code = _reference(path, paths, seen.get((width, height), []), height, width)
            if code is None:
                parts += [np.array([0, len(path)]), np.diff(path, prepend=0)]
            else:
                parts.append(np.array([code]))
            paths.append(path)
    stream = np.concatenate(parts).astype('<i2').tobytes()
    return base64.b64encode(zlib.compress(stream, 9)).decode()


def _reference(
    path: np.ndarray, paths: list[np.ndarray], transposed: list[np.ndarray], height: int, width: int
) -> int | None:
    for j, other in enumerate(paths):
        if np.array_equal(path, other[::-1]):
            return 1 + 2 * j
    turned = np.where(path < height * width, path % width * height + path // width, path)
    for j, other in enumerate(transposed):
        if np.array_equal(turned, other):
            return 2 + 2 * j
    return None


@cache
def files() -> dict[str, bytes]:
    """The scripts of the playground's data, by their place in the site: a list of all orders, and one file for each."""
    listed, made = [], {}
    for order in orders():
        name = f'{order.name}-{len(listed)}'
        strategy = order.strategy
        listed.append(
            {
                'file': name,
                'name': order.name,
                'title': order.describe(),
                'spec': order.spec,
                'directions': order.directions,
                'meaning': strategy.meaning,
                'source': strategy.source,
            }
        )
        made[f'assets/walks/{name}.js'] = f'WALKS.take("{name}","{pack(order)}");\n'.encode()
    colours = shades(np.linspace(0, 1, 65)).tolist()
    index = json.dumps({'side': SIDE, 'square': SQUARE, 'colours': colours, 'orders': listed})
    made['assets/walks/index.js'] = f'WALKS.list({index});\n'.encode()
    return made
