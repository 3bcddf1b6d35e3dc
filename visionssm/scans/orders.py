"""The built-in scan orders, one function each. Every one works at any size from 1 x 1, non-square and odd included."""

from __future__ import annotations

import numpy as np
import torch

from .registry import ScanOrder, check_entries, register_scan


def _grid(height: int, width: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width)


def _sorted_by(height: int, width: int, *keys: np.ndarray) -> np.ndarray:
    """The path that visits tokens by the first key, then the second, ...; ties in raster order."""
    return np.lexsort([np.broadcast_to(key, (height, width)).ravel() for key in reversed(keys)])


def _filled_grid(height: int, width: int, multiple: int, pad: str) -> np.ndarray:
    """Positions of a grid whose sides are filled up: 'repeat' the last row and column, or 'zero', the zero token."""
    grid = _grid(height, width)
    missing = ((0, -height % multiple), (0, -width % multiple))
    check_entries((height + missing[0][1]) * (width + missing[1][1]), f'with a step of {multiple}', height, width)
    return np.pad(grid, missing, 'edge') if pad == 'repeat' else np.pad(grid, missing, constant_values=height * width)


def _check_pad(pad: str, allowed: tuple[str, ...]) -> None:
    if pad not in allowed:
        raise ValueError(f'pad is {pad!r}; allowed are {" and ".join(allowed)}')


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f'{name} is {value}; allowed are integers from {least}')


@register_scan(
    'groupwise',
    directions=4,
    meaning='The table of cross, meant for four groups of channels with one direction each',
    source='arXiv:2407.13772 (GroupMamba)',
)
@register_scan(
    'cross',
    directions=4,
    meaning='Four directions: rows, columns, rows backwards, columns backwards',
    source='arXiv:2401.10166 (VMamba, SS2D)',
)
@register_scan(
    'bidirectional',
    directions=2,
    meaning='Two directions: raster, and the same backwards',
    source='arXiv:2401.09417 (Vim)',
)
@register_scan(
    'raster',
    directions=1,
    meaning='One direction: rows from the top, each left to right',
    source='arXiv:2401.09417 (Vim, forward)',
)
def raster(height: int, width: int) -> np.ndarray:
    """Rows from the top, each left to right."""
    return _grid(height, width).ravel()


@register_scan(
    'reversed', directions=1, meaning='One direction: raster backwards', source='arXiv:2401.09417 (Vim, backward)'
)
def reversed_raster(height: int, width: int) -> np.ndarray:
    """Raster backwards."""
    return raster(height, width)[::-1]


@register_scan(
    'column',
    directions=1,
    meaning='One direction: columns from the left, each downwards',
    source='arXiv:2401.10166 (VMamba)',
)
def column(height: int, width: int) -> np.ndarray:
    """Columns from the left, each top to bottom."""
    return _grid(height, width).T.ravel()


@register_scan(
    'cross_rotations',
    directions=4,
    meaning='Four directions: raster scans of the grid rotated by 0, 90, 180 and 270 degrees counter-clockwise',
    source='arXiv:2401.10166 (VMamba, ablation scans=3)',
)
def cross_rotations(height: int, width: int) -> np.ndarray:
    """Raster scans of the four rotations of the grid."""
    return np.stack([np.rot90(_grid(height, width), turns).ravel() for turns in range(4)])


@register_scan(
    'snake',
    neighbours=4,
    meaning='Rows from the top, alternately rightwards and leftwards, so no step jumps',
    source='arXiv:2403.17695 (PlainMamba, continuous 2D scan)',
)
def snake(height: int, width: int) -> np.ndarray:
    """Boustrophedon: odd rows run backwards."""
    grid = _grid(height, width)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


@register_scan(
    'plainmamba',
    directions=4,
    neighbours=4,
    meaning='The snakes of PlainMamba: rows, rows backwards, columns, columns backwards',
    source='arXiv:2403.17695 (PlainMamba); `step_moves` gives its direction codes',
)
def plainmamba(height: int, width: int) -> np.ndarray:
    """Row snake and column snake, each followed by its reverse."""
    rows, columns = snake(height, width), _grid(height, width).T.ravel()[snake(width, height)]
    return np.stack([rows, rows[::-1], columns, columns[::-1]])


def _local_steps(height: int, width: int, window: int, pad: str) -> int:
    if pad == 'none':
        return height * width
    return ((height + window - 1) // window) * ((width + window - 1) // window) * window * window


@register_scan(
    'local',
    steps=_local_steps,
    meaning='Windows of window x window in raster order, raster inside each; windows at the border may be smaller',
    source='arXiv:2403.09338 (LocalMamba)',
)
def local(height: int, width: int, window: int = 7, pad: str = 'none') -> np.ndarray:
    """Window after window; with `pad='zero'`, windows at the border are filled up with zero tokens, as upstream's."""
    _check_least('window', window, 1)
    _check_pad(pad, ('none', 'zero'))
    if pad == 'zero':
        grid = _filled_grid(height, width, window, pad)
        rows, columns = (side // window for side in grid.shape)
        return grid.reshape(rows, window, columns, window).swapaxes(1, 2).ravel()
    rows, columns = np.ogrid[:height, :width]
    return _sorted_by(height, width, rows // window, columns // window)


@register_scan(
    'multiscale',
    directions=1,
    permutation=False,
    steps=lambda height, width: 3 * height * width,
    meaning='One sequence that visits every token three times: raster backwards, columns, columns backwards',
    source='arXiv:2405.14174 (MSVMamba, the walk of its half-resolution map)',
)
def multiscale(height: int, width: int) -> np.ndarray:
    """Three walks in one sequence, with the state carried from each to the next."""
    down = column(height, width)
    return np.concatenate([reversed_raster(height, width), down, down[::-1]])


@register_scan(
    'hilbert',
    neighbours=4,
    meaning='Hilbert curve, generalised to rectangles of any size without a single jump',
    source='D. Hilbert, 1891; rectangles after Zhang, Kamata and Ueshige, 2006 (pseudo-Hilbert scan)',
)
def hilbert(height: int, width: int) -> np.ndarray:
    """Hilbert curve of a rectangle of any size.

    A block runs from one corner to the end of the side `long` (its cells are start + i * long + j * wide, i < n, j < m)
    and is cut until it is a line (m = 1): across `long` in two, or in three as the Hilbert curve is: up the near half
    of the left part, along the far half, and down the near half of the right part.
    Such a walk in unit steps exists if n is even, or n and m are both odd (colour the cells like a chessboard), and
    every cut keeps it so: the first of two pieces has an even n, the outer two of three have an even n or are lines.
    The whole curve runs from the top left corner to the top right one where that is possible.
    """
    if width == 1 or (width % 2 and height % 2 == 0):
        # from the top right corner down, so that the transposed walk is another one
        block = (width - 1, width, height, -1, width)
    else:
        block = (0, 1, width, width, height)
    blocks = np.array(block)[:, None]
    while not (line := blocks[4] == 1).all():  # all blocks at once: about log2(H W) rounds
        three = ~line & (2 * blocks[2] <= 3 * blocks[4])
        two = ~line & ~three
        counts = np.select([two, three], [2, 3], 1)
        first = np.cumsum(counts) - counts
        pieces = np.repeat(blocks, counts, 1)

        i, (start, long, n, wide, m) = first[two], blocks[:, two]
        half = np.maximum(n // 4 * 2, 2)
        pieces[:, i] = start, long, half, wide, m
        pieces[:, i + 1] = start + half * long, long, n - half, wide, m

        i, (start, long, n, wide, m) = first[three], blocks[:, three]
        half = np.where(m == 2, 1, np.maximum((m + 1) // 4 * 2, 2))
        end = start + (n - 1) * long + (half - 1) * wide
        pieces[:, i] = start, wide, half, long, n // 2
        pieces[:, i + 1] = start + half * wide, long, n, wide, m - half
        pieces[:, i + 2] = end, -wide, half, -long, n - n // 2
        blocks = pieces
    start, long, n = blocks[:3]
    offsets = np.arange(height * width) - np.repeat(np.cumsum(n) - n, n)
    return np.repeat(start, n) + offsets * np.repeat(long, n)


@register_scan(
    'morton',
    meaning='Z curve: quadrants of quadrants in raster order; at sizes other than 2^k it skips what lies outside',
    source='G. M. Morton, 1966',
)
def morton(height: int, width: int) -> np.ndarray:
    """Order by the interleaved bits of row and column."""
    rows, columns = np.ogrid[:height, :width]
    code = np.zeros((height, width), np.int64)
    for bit in range(max(height, width).bit_length()):
        code |= (rows >> bit & 1) << (2 * bit + 1) | (columns >> bit & 1) << (2 * bit)
    return _sorted_by(height, width, code)


@register_scan(
    'spiral',
    neighbours=4,
    meaning='From the top left corner clockwise around the border and inwards to the middle',
    source='after spiral scans, which arXiv:2406.05992 (MHS-VM) uses among others',
)
def spiral(height: int, width: int) -> np.ndarray:
    """Ring after ring, each clockwise from its top left corner."""
    rows, columns = np.ogrid[:height, :width]
    bottom, right = height - 1 - rows, width - 1 - columns
    ring = np.minimum(np.minimum(rows, bottom), np.minimum(columns, right))
    across, down = width - 1 - 2 * ring, height - 1 - 2 * ring  # steps along the sides of the ring
    along = np.select(
        [rows == ring, right == ring, bottom == ring],
        [columns - ring, across + rows - ring, across + down + right - ring],
        2 * across + down + bottom - ring,
    )
    return _sorted_by(height, width, ring, along)


@register_scan(
    'diagonal',
    neighbours=8,
    meaning='Zigzag along the anti-diagonals, alternately downwards and upwards, as JPEG reads its blocks',
    source='ITU-T T.81, figure 5 (JPEG zigzag)',
)
def diagonal(height: int, width: int) -> np.ndarray:
    """Anti-diagonal after anti-diagonal; odd ones run down, even ones up."""
    rows, columns = np.ogrid[:height, :width]
    index = rows + columns
    return _sorted_by(height, width, index, np.where(index % 2, rows, -rows))


@register_scan(
    'nested_s',
    meaning='Vertical stripes walked alternately down and up, rows alternately right and left; shift narrows the first',
    source='after arXiv:2412.20066 (MaIR, nested S-shaped scan)',
)
def nested_s(height: int, width: int, stripe: int = 4, shift: int = 0) -> np.ndarray:
    """Stripes of `stripe` columns, the first of `shift` columns if that is not 0.

    Steps inside a stripe never jump. The step to the next stripe crosses a whole stripe where the number of rows walked
    so far is even: no S can end on the other side then.
    """
    _check_least('stripe', stripe, 1)
    if not 0 <= shift < stripe:
        raise ValueError(f'shift is {shift}; allowed are integers from 0 to {stripe - 1}, below stripe')
    rows, columns = np.ogrid[:height, :width]
    index = (columns - shift) // stripe + (shift > 0)
    walked = index * height + np.where(index % 2, height - 1 - rows, rows)
    return _sorted_by(height, width, walked, np.where(walked % 2, -columns, columns))


@register_scan(
    'atrous',
    directions=4,
    permutation=False,
    steps=lambda height, width, step, pad: ((height + step - 1) // step) * ((width + step - 1) // step),
    meaning='Four directions, each on its own sub-grid of every step-th row and column; by rows or by columns',
    source='after arXiv:2403.09977 (EfficientVMamba, ES2D)',
)
def atrous(height: int, width: int, step: int = 2, pad: str = 'repeat') -> np.ndarray:
    """Sub-grids with row and column offsets (0, 0), (h, 0), (0, h), (h, h), h = step // 2.

    Sizes that `step` does not divide are padded by repeating the last row and column, or with zero tokens as upstream's
    (`pad='zero'`). With step 2 the directions together visit every token, each exactly once if height and width are
    even; a larger step leaves tokens out.
    """
    _check_least('step', step, 1)
    _check_pad(pad, ('repeat', 'zero'))
    grid, half = _filled_grid(height, width, step, pad), step // 2
    return np.stack(
        [
            grid[::step, ::step].ravel(),
            grid[half::step, ::step].T.ravel(),
            grid[::step, half::step].ravel(),
            grid[half::step, half::step].T.ravel(),
        ]
    )


@register_scan(
    'atrous_full',
    meaning='All step x step sub-grids of every step-th row and column, one after the other, raster inside each',
    source='after arXiv:2507.16172 (AtrousMamba) and arXiv:2403.09977 (EfficientVMamba)',
)
def atrous_full(height: int, width: int, step: int = 2) -> np.ndarray:
    """Sub-grid after sub-grid, so that every token is visited."""
    _check_least('step', step, 1)
    rows, columns = np.ogrid[:height, :width]
    return _sorted_by(height, width, rows % step, columns % step)


@register_scan(
    'multihead',
    directions=(4, 8, 16),
    meaning='Four heads, one pattern each: raster, snake, diagonal, spiral; on 1, 2 or 4 routes from different corners',
    source='after arXiv:2406.05992 (MHS-VM)',
)
def multihead(height: int, width: int, directions: int) -> np.ndarray:
    """Direction k is route k % R of head k // R, with R = K / 4 routes per head.

    A route is the head's pattern on the mirrored grid, so that it starts from another corner: head h starts from corner
    h (clockwise from the top left), its further routes from corners spread evenly around.
    """
    grid = _grid(height, width)
    corners = (grid, grid[:, ::-1], grid[::-1, ::-1], grid[::-1])
    routes = directions // 4
    return np.stack(
        [
            corners[(head + route * 4 // routes) % 4].ravel()[pattern(height, width)]
            for head, pattern in enumerate((raster, snake, diagonal, spiral))
            for route in range(routes)
        ]
    )


@register_scan(
    'random',
    directions=(4, ...),
    meaning='A random permutation per direction, fixed by seed, size and direction, the same on every platform',
    source='control experiment',
)
def random(height: int, width: int, directions: int, seed: int = 0) -> np.ndarray:
    """Sort by raw 64-bit draws: NumPy keeps the bit stream of PCG64 stable, not `Generator.permutation`."""
    _check_least('seed', seed, 0)
    draws = [
        np.random.PCG64(np.random.SeedSequence([seed, height, width, k])).random_raw(height * width)
        for k in range(directions)
    ]
    return np.stack([np.argsort(draw, kind='stable') for draw in draws])


def _longest(height: int, width: int, of: tuple[ScanOrder, ...]) -> int:
    longest, *others = (part.steps(height, width) for part in of)
    for other in others:
        if isinstance(height, torch.Tensor):  # of the tracer
            longest = torch.maximum(longest, other)
        else:
            longest = torch.sym_max(longest, other) if isinstance(height, torch.SymInt) else max(longest, other)
    return longest


@register_scan(
    'list',
    directions=(4, ...),
    steps=_longest,
    meaning='Directions of other orders, one each unless a spec asks for more; shorter walks end with zero tokens',
    source='arXiv:2403.09338 (LocalMamba, which chooses four for every layer)',
)
def listed(
    height: int,
    width: int,
    of: tuple[ScanOrder, ...] = ('raster', 'reversed', 'local', {'name': 'local', 'backwards': True}),
) -> np.ndarray:
    """The tables of all, one below the other; shorter walks end with zero tokens."""
    tables, steps = [part.table(height, width) for part in of], _longest(height, width, of)
    ends = [((0, 0), (0, steps - table.shape[1])) for table in tables]
    return np.concatenate([np.pad(t, end, constant_values=height * width) for t, end in zip(tables, ends, strict=True)])
