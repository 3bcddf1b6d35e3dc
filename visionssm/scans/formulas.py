"""Scan orders as arithmetic on token numbers, for exported programs whose grid may have any size.

A formula computes on the device what the function in `orders` of the same name computes with numpy, for sizes that are
numbers, symbols or traced tensors. Orders without one need a grid whose size is known when the program is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .registry import ScanOrder

Size = Any  # int, torch.SymInt, or a 0-d tensor of the tracer


def _count(height: Size, width: Size, like: Tensor) -> Tensor:
    return torch.arange(height * width, device=like.device)


def _number(size: Size, like: Tensor) -> Tensor:
    """A size as a tensor: exporters know the remainder of two tensors, but not of a tensor and a symbol."""
    return size.to(like.device) if isinstance(size, Tensor) else torch.full((), size, device=like.device)


def _transposed(path: Tensor, height: Size, width: Size) -> Tensor:
    """Positions on the grid (width, height) as those of the grid turned over its diagonal."""
    height, width = _number(height, path), _number(width, path)
    return path % height * width + torch.div(path, height, rounding_mode='floor')


def _column(height: Size, width: Size, like: Tensor) -> Tensor:
    return _transposed(_count(height, width, like), height, width)


def _snake(height: Size, width: Size, like: Tensor) -> Tensor:
    path, width = _count(height, width, like), _number(width, like)
    column, odd = path % width, torch.div(path, width, rounding_mode='floor') % 2
    return path + odd * (width - 1 - 2 * column)


def _multiscale(height: Size, width: Size, like: Tensor) -> Tensor:
    down = _column(height, width, like)
    return torch.cat([_count(height, width, like).flip(0), down, down.flip(0)])


def _plainmamba(height: Size, width: Size, like: Tensor) -> Tensor:
    rows, columns = _snake(height, width, like), _transposed(_snake(width, height, like), height, width)
    return torch.stack([rows, rows.flip(0), columns, columns.flip(0)])


def _atrous(height: Size, width: Size, like: Tensor, step: int, pad: str) -> Tensor:
    rows, columns = (height + step - 1) // step, (width + step - 1) // step
    count, half = _count(rows, columns, like), step // 2
    height, width, rows, columns = (_number(size, like) for size in (height, width, rows, columns))

    def places(row: Tensor, column: Tensor) -> Tensor:
        if pad == 'zero':
            outside = (row >= height) | (column >= width)
            return torch.where(outside, height * width, row * width + column)
        return torch.minimum(row, height - 1) * width + torch.minimum(column, width - 1)

    def sub_grid(top: int, left: int, by_columns: bool) -> Tensor:
        side = rows if by_columns else columns
        line, along = torch.div(count, side, rounding_mode='floor') * step, count % side * step
        row, column = (along, line) if by_columns else (line, along)
        return places(row + top, column + left)

    return torch.stack([sub_grid(k % 2 * half, k // 2 * half, k % 2 == 1) for k in range(4)])


def _local(height: Size, width: Size, like: Tensor, window: int, pad: str) -> Tensor:
    rows, columns = (height + window - 1) // window, (width + window - 1) // window
    if pad == 'zero':
        count = _count(rows, columns * window * window, like)
        height, width, columns = (_number(size, like) for size in (height, width, columns))
        place, inside = torch.div(count, window * window, rounding_mode='floor'), count % (window * window)
        row = torch.div(place, columns, rounding_mode='floor') * window
        row = row + torch.div(inside, window, rounding_mode='floor')
        column = place % columns * window + inside % window
        return torch.where((row >= height) | (column >= width), height * width, row * width + column)
    count = _count(height, width, like)
    height, width = _number(height, like), _number(width, like)
    row = torch.div(count, window * width, rounding_mode='floor') * window  # of the window, as its column below
    inside = count - row * width
    high = (height - row).clamp(max=window)
    column = torch.div(inside, high * window, rounding_mode='floor') * window
    inside = inside - column * high
    wide = (width - column).clamp(max=window)
    return (row + torch.div(inside, wide, rounding_mode='floor')) * width + column + inside % wide


_FORMULAS: dict[str, Callable[..., Tensor]] = {
    'atrous': _atrous,
    'local': _local,
    'raster': _count,
    'bidirectional': _count,
    'cross': _count,
    'groupwise': _count,
    'reversed': lambda height, width, like: _count(height, width, like).flip(0),
    'column': _column,
    'snake': _snake,
    'multiscale': _multiscale,
    'plainmamba': _plainmamba,
}


def formula_table(order: ScanOrder, height: Size, width: Size, like: Tensor) -> Tensor | None:
    """The table (K, T) int32 of an order by its formula, on the device of `like`; None if it has none."""
    if order.parts:
        table = _side_by_side([formula_table(part, height, width, like) for part in order.parts], order, height, width)
        return table if table is None or not order.backwards else table.flip(1)
    formula = _FORMULAS.get(order.name)
    if formula is None:
        return None
    path = formula(height, width, like, **dict(order.args))
    if path.ndim == 1 and order.directions == 4:
        other = formula(width, height, like, **dict(order.args))
        other = torch.where(other < _number(height * width, like), _transposed(other, height, width), other)
        path = torch.stack([path, other, path.flip(0), other.flip(0)])
    elif path.ndim == 1:
        path = torch.stack([path, path.flip(0)][: order.directions])
    return (path.flip(1) if order.backwards else path).to(torch.int32)


def _side_by_side(tables: list[Tensor | None], order: ScanOrder, height: Size, width: Size) -> Tensor | None:
    known = [table for table in tables if table is not None]
    if len(known) < len(tables):
        return None
    if order.zeros:
        steps, end = order.steps(height, width), _number(height * width, known[0]).to(torch.int32)
        known = [torch.cat([t, end.expand(t.shape[0], steps - t.shape[1])], 1) for t in known]
    return torch.cat(known)
