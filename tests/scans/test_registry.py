import copy
import json
import pickle

import numpy as np
import pytest
import torch

import visionssm.scans.registry as _registry
from visionssm.scans import (
    ScanOrder,
    get_layer_scans,
    get_scan,
    layer_scans_to_json,
    list_scans,
    register_scan,
    scan_order,
)


@pytest.fixture
def registry(monkeypatch):
    """A registry that the test may add to."""
    monkeypatch.setattr(_registry, '_STRATEGIES', dict(_registry._STRATEGIES))
    yield
    _registry._table.cache_clear()
    _registry._inverse.cache_clear()


@pytest.mark.parametrize(
    'spec, text',
    [
        ('snake', '{"name":"snake"}'),
        ({'name': 'snake', 'directions': 4}, '{"name":"snake"}'),
        ({'directions': 2, 'name': 'snake'}, '{"name":"snake","directions":2}'),
        ({'name': 'local', 'window': 7}, '{"name":"local"}'),
        ('{"window": 3, "name": "local"}', '{"name":"local","window":3}'),
        ({'stripe': 5, 'shift': 2, 'name': 'nested_s'}, '{"name":"nested_s","shift":2,"stripe":5}'),
        ({'name': 'random', 'seed': 3, 'directions': 7}, '{"name":"random","directions":7,"seed":3}'),
        ({'backwards': True, 'name': 'raster'}, '{"name":"raster","backwards":true}'),
        ({'name': 'list'}, '{"name":"list"}'),
        (
            {'name': 'list', 'of': ('column', {'name': 'local', 'window': 2}, {'name': 'cross', 'backwards': True})},
            '{"name":"list","of":["column",{"name":"local","window":2},{"name":"cross","backwards":true}]}',
        ),
        (
            {'name': 'list', 'of': [{'name': 'snake', 'directions': 2}, {'name': 'random', 'directions': 1}]},
            '{"name":"list","of":[{"name":"snake","directions":2},"random"]}',
        ),
    ],
)
def test_json_round_trip(spec, text):
    order = get_scan(spec)
    assert order.to_json() == text
    assert json.loads(text) == order.spec
    assert get_scan(text) == get_scan(order.spec) == get_scan(order) == order
    assert hash(get_scan(text)) == hash(order)
    assert pickle.loads(pickle.dumps(order)) == copy.deepcopy(order) == order


@pytest.mark.parametrize('name', list_scans())
def test_every_order_and_count_round_trips(name):
    for directions in get_scan(name).strategy.directions:
        order = get_scan(name, directions)
        assert order.directions == directions
        assert get_scan(order.to_json()) == order


def test_wanted_directions():
    assert get_scan('snake', 2).directions == 2
    assert get_scan('raster', 4).directions == 1  # not offered: the strategy's default
    assert get_scan('random', 6).directions == 6
    assert get_scan({'name': 'snake', 'directions': 1}, 4).directions == 1  # the spec is explicit
    assert get_scan(ScanOrder('snake', 2), 4).directions == 2


@pytest.mark.parametrize(
    'spec, error, message',
    [
        ('hilbrt', ValueError, r"unknown scan 'hilbrt' \(did you mean 'hilbert'\?\); allowed are raster, "),
        ('?', ValueError, r"unknown scan '\?'; allowed are raster, .*random"),
        ({}, ValueError, 'unknown scan None'),
        ({'name': ['snake']}, ValueError, 'unknown scan'),
        ('{"name": "snake"', ValueError, 'is not valid JSON'),
        (7, TypeError, 'scan is 7; allowed are a name, a dict, a JSON string and a ScanOrder'),
        ({'name': 'local', 'windw': 3}, ValueError, "no argument 'windw'; allowed are directions, window"),
        ({'name': 'local', 'window': '3'}, TypeError, "argument 'window' of scan 'local' is '3'; allowed is int"),
        ({'name': 'local', 'window': True}, TypeError, 'allowed is int'),
        ({'name': 'local', 'window': 0}, ValueError, 'window is 0; allowed are integers from 1'),
        ({'name': 'nested_s', 'shift': 4}, ValueError, 'shift is 4; allowed are integers from 0 to 3'),
        ({'name': 'nested_s', 'stripe': 0}, ValueError, 'stripe is 0'),
        ({'name': 'atrous', 'step': 0}, ValueError, 'step is 0'),
        ({'name': 'atrous_full', 'step': -1}, ValueError, 'step is -1'),
        ({'name': 'random', 'seed': -1}, ValueError, 'seed is -1'),
        ({'name': 'snake', 'directions': 3}, ValueError, 'does not offer directions=3; it offers 4, 2, 1$'),
        ({'name': 'random', 'directions': 0}, ValueError, 'it offers 4 and any other number up to 256'),
        ({'name': 'snake', 'directions': True}, ValueError, 'does not offer directions=True'),
        ({'name': 'snake', 'backwards': 1}, TypeError, 'backwards of scan .snake. is 1; allowed are True and False'),
        ({'name': 'list', 'of': []}, TypeError, r"argument 'of' of scan 'list' is \[\]; allowed are 1 to 256 scans"),
        ({'name': 'list', 'of': 'raster'}, TypeError, 'allowed are 1 to 256 scans'),
        ({'name': 'list', 'of': ['rastr']}, ValueError, 'unknown scan .rastr. .did you mean .raster'),
        ({'name': 'list', 'of': ['list']}, ValueError, 'holds a list of scans; name its directions instead'),
        ({'name': 'list', 'of': [{'name': 'list', 'of': ['snake']}]}, ValueError, "holds 'list', a list itself"),
        ({'name': 'list', 'of': ['snake'], 'directions': 2}, ValueError, '1 directions together; allowed are 2, as'),
        ({'name': 'list', 'of': [{'name': 'random', 'directions': 200}] * 2}, ValueError, '400 .* up to 256'),
    ],
)
def test_bad_specs(spec, error, message):
    with pytest.raises(error, match=message):
        get_scan(spec)


def test_a_scan_per_layer():
    specs = ['snake', {'name': 'local', 'window': 2}, ScanOrder('cross', 4)]
    orders = get_layer_scans(specs, 3, 4)
    assert [order.name for order in orders] == ['snake', 'local', 'cross']
    text = layer_scans_to_json(orders)
    assert text == '[{"name":"snake"},{"name":"local","window":2},{"name":"cross"}]'
    assert get_layer_scans(text, 3) == orders
    assert layer_scans_to_json(get_layer_scans('snake', 3, 2)) == '{"name":"snake","directions":2}'
    with pytest.raises(ValueError, match='2 scans are given for 3 layers'):
        get_layer_scans(['snake', 'cross'], 3)
    with pytest.raises(ValueError, match='of layers have 1 and 4 directions'):
        get_layer_scans(['snake', 'raster'], 2)
    with pytest.raises(TypeError, match='scan is 7'):
        get_layer_scans(7, 2)
    with pytest.raises(ValueError, match='not valid JSON'):
        get_layer_scans('["snake"', 1)


def test_bad_wish_and_bad_sizes():
    with pytest.raises(ValueError, match='directions is 0'):
        get_scan('snake', 0)
    for size in ((0, 4), (4, -1)):
        with pytest.raises(ValueError, match='allowed are integers from 1'):
            get_scan('snake').table(*size)
        with pytest.raises(ValueError, match='allowed are integers from 1'):
            get_scan('snake').inverse(*size)
    with pytest.raises(TypeError):
        get_scan('snake').table(2.5, 4)
    assert get_scan('snake').table(np.int64(2), 2).shape == (4, 4)


def test_user_path(registry):
    @register_scan('odd_rows_first', meaning='Rows 1, 3, 5, ..., then rows 0, 2, 4, ...')
    def odd_rows_first(height, width):
        grid = np.arange(height * width).reshape(height, width)
        return np.concatenate([grid[1::2].ravel(), grid[::2].ravel()])

    assert 'odd_rows_first' in list_scans()
    assert get_scan('odd_rows_first').table(2, 2).tolist() == [[2, 3, 0, 1], [1, 3, 0, 2], [1, 0, 3, 2], [2, 0, 3, 1]]
    assert scan_order('odd_rows_first', 2, 2, torch.zeros(1)).shape == (4, 4)
    assert odd_rows_first(1, 2).tolist() == [0, 1]  # the decorator leaves the function as it is


def test_user_table_with_arguments_and_steps(registry):
    @register_scan(
        'corners',
        meaning='The first token, `times` times over',
        source='here',
        directions=(3, 5),
        permutation=False,
        steps=lambda height, width, times, scale: times,
    )
    def corners(height, width, directions, times=2, scale=1.0):
        return np.zeros((directions, times), int)

    order = get_scan({'name': 'corners', 'times': 4, 'scale': 2}, directions=5)
    assert order.to_json() == '{"name":"corners","directions":5,"scale":2.0,"times":4}'
    assert order.table(3, 3).tolist() == [[0] * 4] * 5
    assert order.inverse(1, 2).tolist() == [[0, -1]] * 5
    assert order.strategy.source == 'here' and dict(order.strategy.args) == {'times': 2, 'scale': 1.0}


@pytest.mark.parametrize(
    'options, message',
    [
        ({'name': 'snake'}, "'snake' is registered already"),
        ({'name': 'a b'}, 'is not an identifier'),
        ({'directions': ()}, 'directions is'),
        ({'directions': (4, 0)}, 'directions is'),
        ({'directions': (4, ..., 2)}, 'directions is'),
        ({'directions': (...,)}, 'directions is'),
        ({'neighbours': 6}, 'neighbours is 6; allowed are 0, 4 and 8'),
        ({'steps': lambda height, width: 1}, 'pass permutation=False'),
    ],
)
def test_bad_registration(registry, options, message):
    with pytest.raises(ValueError, match=message):
        register_scan(**{'name': 'new', 'meaning': '', **options})(lambda height, width: None)
    assert 'new' not in list_scans()


def test_bad_function(registry):
    with pytest.raises(TypeError, match="argument 'size' of scan 'new' needs a default"):
        register_scan('new', meaning='')(lambda height, width, size: None)
    with pytest.raises(ValueError, match='is called name'):
        register_scan('new', meaning='')(lambda height, width, name='x': None)
    with pytest.raises(ValueError, match='is called backwards'):
        register_scan('new', meaning='')(lambda height, width, backwards=False: None)


@pytest.mark.parametrize(
    'options, function, message',
    [
        ({}, lambda h, w: np.zeros(h * w, int), 'visits a token twice'),
        ({}, lambda h, w: np.arange(h * w) + 1, r'visits tokens 1\.\.4; allowed are 0\.\.3'),
        ({}, lambda h, w: np.arange(h * w) / 1, 'gives float64'),
        ({}, lambda h, w: np.arange(h), r'gives int64 \(4, 2\); expected integers of shape \(4, 4\)'),
        ({'directions': 2}, lambda h, w: np.arange(h * w)[None], r'expected integers of shape \(2, 4\)'),
        ({'directions': 3}, lambda h, w: np.arange(h * w), 'gives 1, 2 or 4 directions, not 3'),
        ({}, lambda h, w: np.arange(h * w if h <= w else h), 'need equally many'),
    ],
)
def test_broken_promises(registry, options, function, message):
    register_scan('new', meaning='', **options)(function)
    height, width = (2, 3) if 'equally' in message else (2, 2)
    with pytest.raises(ValueError, match=message):
        ScanOrder('new', get_scan('snake').directions if not options else options['directions']).table(height, width)
