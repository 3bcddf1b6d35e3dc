import numpy as np
import pytest
import torch

from visionssm.scans import get_scan, list_scans
from visionssm.scans.formulas import _FORMULAS, formula_table

SIZES = [(1, 1), (1, 5), (5, 1), (4, 4), (7, 7), (5, 8), (8, 6), (13, 9), (14, 14)]
BUILT_IN = [
    'raster', 'reversed', 'column', 'bidirectional', 'cross', 'cross_rotations', 'snake', 'plainmamba', 'local',
    'multiscale', 'groupwise', 'hilbert', 'morton', 'spiral', 'diagonal', 'nested_s', 'atrous', 'atrous_full',
    'multihead', 'random', 'list',
]  # fmt: skip
# every strategy with its defaults, and each argument at values that matter
SPECS = [{'name': name} for name in BUILT_IN] + [
    {'name': 'local', 'window': 1},
    {'name': 'local', 'window': 3},
    {'name': 'nested_s', 'stripe': 1},
    {'name': 'nested_s', 'stripe': 3, 'shift': 1},
    {'name': 'atrous', 'step': 1},
    {'name': 'atrous', 'step': 3},
    {'name': 'atrous_full', 'step': 3},
    {'name': 'multihead', 'directions': 8},
    {'name': 'multihead', 'directions': 16},
    {'name': 'random', 'seed': 7, 'directions': 3},
    {'name': 'spiral', 'directions': 2, 'backwards': True},
    {'name': 'list', 'of': ['column', {'name': 'hilbert', 'directions': 2}], 'backwards': True},
]
SPEC_IDS = ['-'.join(map(str, spec.values())) for spec in SPECS]
PATHS = [name for name in BUILT_IN if get_scan(name).strategy.directions == (4, 2, 1)]

each_size = pytest.mark.parametrize('height, width', SIZES, ids=lambda size: str(size))


def _path(spec, height, width):
    return get_scan(spec, directions=1).table(height, width)[0]


def _transposed(path, height, width):
    """A path of the W x H grid as positions of the H x W grid."""
    rows, columns = np.divmod(path, height)
    return columns * width + rows


def test_all_built_in_orders_are_listed():
    assert sorted(BUILT_IN) == sorted(list_scans())


@pytest.mark.parametrize('spec', SPECS, ids=SPEC_IDS)
@each_size
def test_table_keeps_its_promises(spec, height, width):
    order = get_scan(spec)
    table = order.table(height, width)
    assert table.dtype == np.int32
    assert table.shape == (order.directions, order.steps(height, width))
    assert not table.flags.writeable
    assert order.table(height, width) is table
    if order.strategy.permutation:
        assert (np.sort(table, 1) == np.arange(height * width)).all()
    rows, columns = np.divmod(table, width)
    down, right = abs(np.diff(rows)), abs(np.diff(columns))
    if order.strategy.neighbours == 4:
        assert (down + right == 1).all()
    elif order.strategy.neighbours == 8:
        assert (np.maximum(down, right) == 1).all()


@pytest.mark.parametrize('spec', SPECS, ids=SPEC_IDS)
@each_size
def test_inverse_is_the_first_visit(spec, height, width):
    order = get_scan(spec)
    table, inverse = order.table(height, width), order.inverse(height, width)
    assert inverse.shape == (order.directions, height * width)
    assert inverse.dtype == np.int32 and not inverse.flags.writeable
    for path, steps in zip(table.tolist(), inverse.tolist(), strict=True):
        assert steps == [path.index(token) if token in path else -1 for token in range(height * width)]
    if order.strategy.permutation:
        assert (np.take_along_axis(table, inverse, 1) == np.arange(height * width)).all()


def test_which_orders_promise_what():
    promises = {name: get_scan(name).strategy for name in BUILT_IN}
    assert {n for n, s in promises.items() if not s.permutation} == {'multiscale', 'atrous'}
    assert {n for n, s in promises.items() if s.neighbours == 4} == {'snake', 'plainmamba', 'hilbert', 'spiral'}
    assert {n for n, s in promises.items() if s.neighbours == 8} == {'diagonal'}
    assert all(s.meaning and s.source and '\n' not in s.meaning for s in promises.values())


@pytest.mark.parametrize('name', PATHS)
@each_size
def test_directions_of_a_path(name, height, width):
    path = _path(name, height, width)
    other = _transposed(_path(name, width, height), height, width)
    assert (get_scan(name, directions=2).table(height, width) == [path, path[::-1]]).all()
    assert (get_scan(name, directions=4).table(height, width) == [path, other, path[::-1], other[::-1]]).all()
    if min(height, width) > 1:
        assert len({tuple(row) for row in get_scan(name).table(height, width).tolist()}) == 4


def test_cross_is_that_of_vmamba():
    expected = [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]
    assert get_scan('cross').table(2, 3).tolist() == expected


@each_size
def test_raster_family(height, width):
    length = height * width
    raster = np.arange(length)
    column = (raster % height) * width + raster // height
    for name, expected in {
        'raster': [raster],
        'reversed': [raster[::-1]],
        'column': [column],
        'bidirectional': [raster, raster[::-1]],
        'cross': [raster, column, raster[::-1], column[::-1]],
        'groupwise': [raster, column, raster[::-1], column[::-1]],
        'multiscale': [np.concatenate([raster[::-1], column, column[::-1]])],
    }.items():
        assert (get_scan(name).table(height, width) == expected).all(), name


def test_cross_rotations():
    expected = [[0, 1, 2, 3, 4, 5], [2, 5, 1, 4, 0, 3], [5, 4, 3, 2, 1, 0], [3, 0, 4, 1, 5, 2]]
    assert get_scan('cross_rotations').table(2, 3).tolist() == expected


def test_plainmamba_table():
    rows, columns = [0, 1, 2, 5, 4, 3], [0, 3, 4, 1, 2, 5]
    assert get_scan('plainmamba').table(2, 3).tolist() == [rows, rows[::-1], columns, columns[::-1]]


@each_size
def test_plainmamba_formulas(height, width):
    steps = np.arange(height * width)
    row, r = steps // width, steps % width
    rows = row * width + np.where(row % 2 == 0, r, width - 1 - r)
    column, r = steps // height, steps % height
    columns = np.where(column % 2 == 0, r, height - 1 - r) * width + column
    assert (get_scan('plainmamba').table(height, width) == [rows, rows[::-1], columns, columns[::-1]]).all()
    assert (_path('snake', height, width) == rows).all()


@each_size
@pytest.mark.parametrize('name', [*sorted(_FORMULAS), 'list'])
def test_formulas(name, height, width):
    """What exported programs compute is the table."""
    options = {'atrous': [{'pad': 'zero'}, {'step': 3}], 'local': [{'window': 2}, {'window': 3, 'pad': 'zero'}]}
    filled = [{'name': 'local', 'window': window, 'pad': 'zero'} for window in (2, 3)]
    options['list'] = [{'of': ['raster', {'name': 'column', 'backwards': True}]}, {'of': ['column', *filled]}]
    for args in [{}, *options.get(name, []), {'backwards': True}]:
        order = get_scan({'name': name, **args})
        table = formula_table(order, height, width, torch.zeros(1))
        assert (table.numpy() == order.table(height, width)).all()


@each_size
def test_lists(height, width):
    """Directions of other orders, in their order; shorter ones end with zero tokens."""
    window = {'name': 'local', 'window': 2, 'pad': 'zero'}
    order = get_scan({'name': 'list', 'of': ['column', {**window, 'backwards': True}, {'name': 'cross'}]})
    table, steps, tokens = order.table(height, width), order.steps(height, width), height * width
    assert order.directions == 6 and table.shape == (6, steps) and order.zeros and not order.permutation
    assert (table[0, :tokens] == _path('column', height, width)).all() and (table[0, tokens:] == tokens).all()
    assert (table[1] == _path(window, height, width)[::-1]).all()
    assert (table[2:, :tokens] == get_scan('cross').table(height, width)).all()
    plain = get_scan({'name': 'list', 'of': ['spiral', 'column']})
    assert plain.permutation and plain.steps(height, width) == tokens


@each_size
def test_local_finishes_each_window(height, width):
    rows, columns = np.divmod(_path({'name': 'local', 'window': 3}, height, width), width)
    windows = rows // 3 * width + columns // 3
    assert (np.diff(windows) >= 0).all()
    inside = np.diff(windows) == 0
    assert (np.diff(rows * width + columns)[inside] > 0).all()


def test_hilbert_is_the_classic_curve_on_a_square():
    assert _path('hilbert', 2, 2).tolist() == [0, 2, 3, 1]
    assert _path('hilbert', 4, 4).tolist() == [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]
    rows, columns = np.divmod(_path('hilbert', 16, 16), 16)
    quarters = (rows // 8 * 2 + columns // 8).reshape(4, 64)
    assert (quarters == [[0], [2], [3], [1]]).all()


@pytest.mark.parametrize('height, width', [(2, 31), (31, 2), (3, 101), (101, 3), (101, 4), (63, 64), (1, 64)])
def test_hilbert_never_jumps(height, width):
    for path in get_scan('hilbert').table(height, width):
        rows, columns = np.divmod(path, width)
        assert (abs(np.diff(rows)) + abs(np.diff(columns)) == 1).all()
        assert (np.sort(path) == np.arange(height * width)).all()


def test_morton_is_the_z_curve():
    assert _path('morton', 4, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    z16 = _path('morton', 16, 16)
    inside = (z16 // 16 < 13) & (z16 % 16 < 9)
    assert (_path('morton', 13, 9) == (z16 // 16 * 9 + z16 % 16)[inside]).all()


def test_spiral_and_diagonal():
    assert _path('spiral', 3, 4).tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]
    assert _path('diagonal', 3, 3).tolist() == [0, 1, 3, 6, 4, 2, 5, 7, 8]


@each_size
@pytest.mark.parametrize('stripe, shift', [(4, 0), (3, 1), (2, 1)])
def test_nested_s_never_jumps_inside_a_stripe(height, width, stripe, shift):
    path = _path({'name': 'nested_s', 'stripe': stripe, 'shift': shift}, height, width)
    rows, columns = np.divmod(path, width)
    index = (columns - shift) // stripe
    assert (np.diff(index) >= 0).all()
    jump = abs(np.diff(rows)) + abs(np.diff(columns))
    assert (jump[np.diff(index) == 0] == 1).all()
    assert (np.diff(rows)[np.diff(index) == 1] == 0).all() and (jump <= stripe).all()
    if height % 2 and (columns[1:][np.diff(index) == 1] - columns[:-1][np.diff(index) == 1] == 1).all():
        assert (jump == 1).all()


def test_nested_s_shift_narrows_the_first_stripe():
    path = _path({'name': 'nested_s', 'stripe': 3, 'shift': 1}, 2, 4)
    assert path.tolist() == [0, 4, 5, 6, 7, 3, 2, 1]


def test_atrous_sub_grids():
    expected = [[0, 2, 8, 10], [4, 12, 6, 14], [1, 3, 9, 11], [5, 13, 7, 15]]
    assert get_scan('atrous').table(4, 4).tolist() == expected
    assert _path('atrous_full', 4, 4).tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]


@each_size
def test_atrous_visits_everything_and_pads_by_repetition(height, width):
    table = get_scan('atrous').table(height, width)
    assert set(table.ravel().tolist()) == set(range(height * width))
    if height % 2 == 0 and width % 2 == 0:
        assert table.size == height * width
    padded = np.pad(np.arange(height * width).reshape(height, width), ((0, 1), (0, 1)), 'edge')
    rows, columns = (height + 1) // 2 * 2, (width + 1) // 2 * 2
    for row, offsets in zip(table, [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True):
        grid = padded[offsets[0] : rows : 2, offsets[1] : columns : 2]
        assert (row == (grid.T if offsets[0] != offsets[1] and offsets[0] or all(offsets) else grid).ravel()).all()


@each_size
def test_multihead_routes_are_mirrored_patterns(height, width):
    table = get_scan({'name': 'multihead', 'directions': 16}).table(height, width)
    grid = np.arange(height * width).reshape(height, width)
    corners = [grid, grid[:, ::-1], grid[::-1, ::-1], grid[::-1]]
    patterns = [np.arange(height * width), *(_path(name, height, width) for name in ('snake', 'diagonal', 'spiral'))]
    for k, row in enumerate(table):
        head, route = divmod(k, 4)
        assert (row == corners[(head + route) % 4].ravel()[patterns[head]]).all()
    assert (get_scan('multihead').table(height, width) == table[::4]).all()
    assert (get_scan('multihead', directions=8).table(height, width) == table[::2]).all()


def test_random_is_the_same_everywhere():
    table = get_scan('random').table(5, 8)
    assert table[:, :8].tolist() == [
        [32, 9, 2, 37, 28, 18, 15, 26],
        [31, 18, 25, 30, 35, 5, 28, 29],
        [27, 17, 4, 24, 12, 25, 7, 36],
        [8, 36, 23, 11, 6, 18, 20, 16],
    ]
    assert (get_scan('random', directions=9).table(5, 8)[:4] == table).all()
    assert (get_scan({'name': 'random', 'seed': 1}).table(5, 8) != table).any()
    assert (get_scan('random').table(8, 5) != table).any()


@pytest.mark.parametrize('name', BUILT_IN)
def test_large_grids_are_built_in_reasonable_time(name):
    # a loop over tokens in Python would take minutes for all orders
    assert get_scan(name).table(192, 256).shape[1] > 0


@each_size
@pytest.mark.parametrize(
    'spec', [{'name': 'local', 'window': 3}, {'name': 'atrous'}, {'name': 'atrous', 'step': 3}], ids=str
)
def test_zero_tokens_fill_the_grid(spec, height, width):
    """As on the grid that is filled up: its own tokens in the same order, and zero tokens where the others were."""
    multiple = spec.get('window', spec.get('step', 2))
    order = get_scan({**spec, 'pad': 'zero'}, 4)
    table, tokens = order.table(height, width), height * width
    rows, columns = (-(-side // multiple) * multiple for side in (height, width))
    grid = np.full((rows, columns), tokens)
    grid[:height, :width] = np.arange(tokens).reshape(height, width)
    assert (table == grid.ravel()[get_scan(spec, 4).table(rows, columns)]).all()
    assert order.zeros and not order.permutation and order.steps(height, width) == table.shape[1]
    assert order.inverse(height, width).shape == (4, tokens)
    if spec['name'] == 'local':
        assert (np.sort(table)[:, :tokens] == np.arange(tokens)).all()
    with pytest.raises(ValueError, match="pad is 'none|pad is 'repeat"):
        get_scan({**spec, 'pad': 'repeat' if spec['name'] == 'local' else 'none'})
