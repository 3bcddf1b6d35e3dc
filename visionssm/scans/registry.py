"""The registry of scan orders: a strategy is a function of the grid, an order is a strategy with its arguments chosen.

Tables hold row-major token positions p = row * width + column. A function that returns one path (T,) also gives several
directions: 1: [p]; 2: [p, p reversed]; 4: [p, q, p reversed, q reversed], where q is the path of the transposed grid
(VMamba's order of parameter sets). A function that returns a table (K, T) sets its own directions. An order may be
walked backwards, and the order `list` puts directions of others side by side.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import EllipsisType, MappingProxyType
from typing import Any

import numpy as np

ArgValue = bool | int | float | str | tuple  # tuples hold orders

_STRATEGIES: dict[str, ScanStrategy] = {}
# what a table may have, so that a configuration from elsewhere can't ask for any amount of memory: building one takes
# about 30 bytes per entry. A program that needs more sets these.
MAX_DIRECTIONS = 256
MAX_ENTRIES = 1 << 24  # four directions on a map of 2048 x 2048


@dataclass(frozen=True)
class ScanStrategy:
    """One named way to visit a grid, as registered.

    Attributes:
        name: Its name.
        meaning: What it does, in one line.
        source: Paper or repository that it is from.
        directions: Numbers of directions it offers; the first is the default.
        any_directions: Whether every other number is offered too.
        permutation: Whether each direction visits every token exactly once; with `pad='zero'`, zero tokens besides.
        neighbours: 4 or 8 if consecutive tokens are always 4- or 8-neighbours on the grid, 0 if neither is promised.
        args: Its arguments with their defaults.
    """

    name: str
    meaning: str
    source: str
    directions: tuple[int, ...]
    any_directions: bool
    permutation: bool
    neighbours: int
    args: Mapping[str, ArgValue]
    build: Callable[..., np.ndarray]
    count_steps: Callable[..., Any] | None
    takes_directions: bool

    def offers(self, directions: int) -> bool:
        """Whether the strategy offers this number of directions."""
        return directions in self.directions or (self.any_directions and directions >= 1)


@dataclass(frozen=True)
class ScanOrder:
    """A strategy with its arguments and number of directions chosen; made by `get_scan`. Hashable and picklable.

    Attributes:
        name: The strategy.
        directions: Number of directions K.
        args: All arguments of the strategy as (name, value) pairs, sorted.
        backwards: Whether every direction is walked from its end.
    """

    name: str
    directions: int
    args: tuple[tuple[str, ArgValue], ...] = ()
    backwards: bool = False

    @property
    def strategy(self) -> ScanStrategy:
        """The strategy as registered: meaning, source, promises."""
        return _STRATEGIES[self.name]

    @property
    def parts(self) -> tuple[ScanOrder, ...]:
        """The orders that it puts side by side, if it does."""
        return next((value for _, value in self.args if isinstance(value, tuple)), ())

    @property
    def zeros(self) -> bool:
        """Whether it may visit a zero token, which has the position H * W behind all others."""
        return ('pad', 'zero') in self.args or not all(part.permutation for part in self.parts)

    @property
    def permutation(self) -> bool:
        """Whether each direction visits every token exactly once, and nothing else."""
        return self.strategy.permutation and not self.zeros

    @property
    def spec(self) -> dict[str, Any]:
        """The shortest dict that `get_scan` turns into this order: defaults are left out. JSON-serialisable."""
        return self._spec(self.strategy.directions[0])

    def _spec(self, usual: int) -> dict[str, Any]:
        """`spec` for a reader that gives an order `usual` directions."""
        spec: dict[str, Any] = {'name': self.name}
        if self.directions != usual and not self.parts:
            spec['directions'] = self.directions
        if self.backwards:
            spec['backwards'] = True
        for key, value in self.args:
            if value != self.strategy.args[key]:
                spec[key] = [part._brief for part in value] if isinstance(value, tuple) else value
        return spec

    @property
    def _brief(self) -> str | dict[str, Any]:
        """As an entry of a list, where one direction is usual: a name if that says all."""
        spec = self._spec(1 if self.strategy.offers(1) else self.strategy.directions[0])
        return spec if len(spec) > 1 else self.name

    def to_json(self) -> str:
        """`spec` as a string; equal orders give equal strings, and `get_scan` reads it back."""
        return json.dumps(self.spec, separators=(',', ':'))

    def describe(self) -> str:
        """Name and all arguments, for people."""
        parts = [f'{self.name} backwards' if self.backwards else self.name]
        for key, value in self.args:
            of_orders = isinstance(value, tuple)
            parts.append(f'{key}={" + ".join(part.describe() for part in value) if of_orders else value}')
        return ', '.join(parts)

    def steps(self, height: int, width: int) -> int:
        """Steps T per direction on a grid of this size, symbolic integers included."""
        count_steps = self.strategy.count_steps
        return height * width if count_steps is None else count_steps(height, width, **dict(self.args))

    def table(self, height: int, width: int) -> np.ndarray:
        """Token positions in visiting order, (K, T) int32, read-only.

        Args:
            height: Rows of the grid, from 1.
            width: Columns of the grid, from 1.

        Raises:
            ValueError: If a size is below 1, or the strategy's function breaks a promise.
        """
        return _table(self, _size('height', height), _size('width', width))

    def inverse(self, height: int, width: int) -> np.ndarray:
        """The step at which each token is visited, (K, H * W) int32, read-only.

        A token visited several times gets its first step, a token never visited gets -1. The zero token of `pad='zero'`
        has no column.

        Args:
            height: Rows of the grid, from 1.
            width: Columns of the grid, from 1.

        Raises:
            ValueError: As `table`.
        """
        return _inverse(self, _size('height', height), _size('width', width))


def register_scan(
    name: str,
    *,
    meaning: str,
    source: str = '',
    directions: int | Sequence[int | EllipsisType] = (4, 2, 1),
    permutation: bool = True,
    neighbours: int = 0,
    steps: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Register `function(height, width, **args)` as a scan order, for every model that takes `scan=`.

    The function returns a path (T,) or a table (K, T) of row-major token positions, for any size from 1 x 1. Its
    other parameters are the arguments of the order: each needs a bool, int, float or str as default, whose type is
    enforced; the function raises `ValueError` for values out of range. A parameter `directions` receives the number
    chosen. With an argument `pad` of 'zero', tables may hold H * W: a step on a token that is zero throughout. A tuple
    of specs as default makes an argument of orders, of one direction each unless they say otherwise: the order has
    their directions together, and may visit zero tokens unless all of them are permutations.

    Args:
        name: New name, an identifier.
        meaning: What it does, in one line.
        source: Paper or repository.
        directions: Numbers of directions offered, the default first; a trailing Ellipsis offers every other number too.
        permutation: Whether each direction visits every token exactly once; checked whenever a table is built.
        neighbours: 4 or 8 promises that consecutive tokens are 4- or 8-neighbours; 0 promises nothing.
        steps: `steps(height, width, **args)` if T is not H * W; only + - * //, as sizes may be symbolic.

    Raises:
        ValueError: If the name is taken or not an identifier, an argument is called name or backwards, or settings
            contradict each other.
        TypeError: If a parameter of the function has no usable default.

    Example:
        >>> @register_scan('odd_rows_first', meaning='Rows 1, 3, 5, ..., then rows 0, 2, 4, ...')
        ... def odd_rows_first(height, width):
        ...     grid = np.arange(height * width).reshape(height, width)
        ...     return np.concatenate([grid[1::2].ravel(), grid[::2].ravel()])
    """
    offered = (directions,) if isinstance(directions, int) else tuple(directions)
    any_directions = offered[-1:] == (...,)
    counts = tuple(count for count in offered if isinstance(count, int))
    if not name.isidentifier():
        raise ValueError(f'scan name {name!r} is not an identifier')
    if name in _STRATEGIES:
        raise ValueError(f'scan {name!r} is registered already; choose another name')
    if not counts or min(counts) < 1 or len(counts) + any_directions != len(offered):
        raise ValueError(f'directions is {directions!r}; allowed are integers from 1, the default first')
    if neighbours not in (0, 4, 8):
        raise ValueError(f'neighbours is {neighbours!r}; allowed are 0, 4 and 8')

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        parameters = list(inspect.signature(function).parameters.values())[2:]
        args = {parameter.name: parameter.default for parameter in parameters if parameter.name != 'directions'}
        args = {
            key: _orders(name, key, default) if isinstance(default, tuple) else default for key, default in args.items()
        }
        padded = 'pad' in args or any(isinstance(default, tuple) for default in args.values())
        if permutation and steps is not None and not padded:
            raise ValueError('steps is given for a permutation, which takes H * W steps; pass permutation=False')
        for key, default in args.items():
            if key in ('name', 'backwards'):
                raise ValueError(f'an argument of scan {name!r} is called {key}, which specs use for the scan itself')
            if not isinstance(default, ArgValue):
                raise TypeError(f'argument {key!r} of scan {name!r} needs a default: a bool, int, float or str')
        _STRATEGIES[name] = ScanStrategy(
            name=name,
            meaning=meaning,
            source=source,
            directions=counts,
            any_directions=any_directions,
            permutation=permutation,
            neighbours=neighbours,
            args=MappingProxyType(args),
            build=function,
            count_steps=steps,
            takes_directions=len(args) < len(parameters),
        )
        return function

    return register


def list_scans() -> list[str]:
    """Names of all registered scan orders, in order of registration; `get_scan(name).strategy` describes each."""
    return list(_STRATEGIES)


def get_scan(spec: str | Mapping[str, Any] | ScanOrder, directions: int | None = None) -> ScanOrder:
    """Look up a scan order.

    Args:
        spec: A name, a dict `{'name': 'local', 'window': 7}`, such a dict as a JSON string, or a `ScanOrder`, which is
            returned unchanged. The key `directions` asks for a number of directions, which must be offered; with
            `backwards` true, every direction is walked from its end.
        directions: The number a model would like, from 1: used if `spec` leaves it open and the strategy offers it.
            Otherwise the order keeps the strategy's default, and the caller decides what to do.

    Raises:
        ValueError: If the name or an argument is unknown, a value is out of range, or `spec` is not valid JSON.
        TypeError: If `spec` or an argument has the wrong type.
    """
    if isinstance(spec, ScanOrder):
        return spec
    chosen = _parse(spec)
    name = chosen.pop('name', None)
    if not isinstance(name, str) or name not in _STRATEGIES:
        close = difflib.get_close_matches(str(name), _STRATEGIES, 1)
        hint = f' (did you mean {close[0]!r}?)' if close else ''
        raise ValueError(f'unknown scan {name!r}{hint}; allowed are {", ".join(_STRATEGIES)}')
    strategy = _STRATEGIES[name]
    if directions is not None and (not isinstance(directions, int) or not 1 <= directions <= MAX_DIRECTIONS):
        raise ValueError(f'directions is {directions!r}; allowed are integers from 1 to {MAX_DIRECTIONS}')
    count = directions if directions is not None and strategy.offers(directions) else strategy.directions[0]
    backwards = chosen.pop('backwards', False)
    if type(backwards) is not bool:
        raise TypeError(f'backwards of scan {name!r} is {backwards!r}; allowed are True and False')
    asked = chosen.pop('directions', None)
    if asked is not None:
        count = asked
        if type(count) is not int or not strategy.offers(count) or count > MAX_DIRECTIONS:
            more = f' and any other number up to {MAX_DIRECTIONS}' if strategy.any_directions else ''
            offered = ', '.join(map(str, strategy.directions))
            raise ValueError(f'scan {name!r} does not offer directions={count!r}; it offers {offered}{more}')
    for key in chosen:
        if key not in strategy.args:
            allowed = ', '.join(['directions', *strategy.args, 'backwards'])
            raise ValueError(f'scan {name!r} has no argument {key!r}; allowed are {allowed}')
    args = {key: _checked(name, key, chosen.get(key, default), default) for key, default in strategy.args.items()}
    order = ScanOrder(name, count, tuple(sorted(args.items())), backwards)
    if order.parts:
        count = sum(part.directions for part in order.parts)
        if count > MAX_DIRECTIONS or asked not in (None, count):
            allowed = f'up to {MAX_DIRECTIONS}' if asked is None else f'{asked}, as directions says'
            raise ValueError(f'the orders of scan {name!r} have {count} directions together; allowed are {allowed}')
        order = dataclasses.replace(order, directions=count)
    order.table(1, 1)  # values out of range raise here, not in the first forward pass
    return order


def get_layer_scans(
    spec: str | Mapping[str, Any] | ScanOrder | Sequence[str | Mapping[str, Any] | ScanOrder],
    layers: int,
    directions: int | None = None,
) -> list[ScanOrder]:
    """Look up the scan orders of a stack of layers.

    Args:
        spec: One spec for all layers, as `get_scan` takes it; or a sequence of them or a JSON list, one per layer.
        layers: How many there are.
        directions: As in `get_scan`.

    Returns:
        An order per layer, all with as many directions.

    Raises:
        ValueError: As `get_scan`; or if there is another number of orders, or they differ in their directions.
        TypeError: As `get_scan`.
    """
    if isinstance(spec, str) and spec.lstrip().startswith('['):
        spec = _from_json(spec)
    if isinstance(spec, str | Mapping) or not isinstance(spec, Sequence):
        return [get_scan(spec, directions)] * layers
    if len(spec) != layers:
        raise ValueError(f'{len(spec)} scans are given for {layers} layers; give one for each, or one spec for all')
    orders = [get_scan(one, directions) for one in spec]
    counts = sorted({order.directions for order in orders})
    if len(counts) > 1:
        raise ValueError(f'scans of layers have {" and ".join(map(str, counts))} directions; all need as many')
    return orders


def layer_scans_to_json(orders: Sequence[ScanOrder]) -> str:
    """What `get_layer_scans` turns into these orders: a spec if they are all the same, else a list."""
    if len(set(orders)) == 1:
        return orders[0].to_json()
    return f'[{",".join(order.to_json() for order in orders)}]'


def _parse(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(spec, str):
        if not spec.lstrip().startswith('{'):
            return {'name': spec}
        return _from_json(spec)
    if isinstance(spec, Mapping):
        return dict(spec)
    raise TypeError(f'scan is {spec!r}; allowed are a name, a dict, a JSON string and a ScanOrder')


def _from_json(spec: str) -> Any:
    try:
        return json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'scan {spec[:200]!r} is not valid JSON: {error}') from error


def _orders(name: str, key: str, specs: Any) -> tuple[ScanOrder, ...]:
    if not isinstance(specs, list | tuple) or not 1 <= len(specs) <= MAX_DIRECTIONS:
        raise TypeError(f'argument {key!r} of scan {name!r} is {specs!r}; allowed are 1 to {MAX_DIRECTIONS} scans')
    for spec in specs:  # before they are read: one inside the other could be any number deep
        if isinstance(spec, Mapping) and isinstance(spec.get(key), list | tuple):
            raise ValueError(f'scan {name!r} holds {spec.get("name")!r}, a list itself; name its directions instead')
    orders = tuple(get_scan(spec, 1) for spec in specs)
    if any(order.parts for order in orders):
        raise ValueError(f'scan {name!r} holds a list of scans; name its directions instead')
    return orders


def _checked(name: str, key: str, value: Any, default: ArgValue) -> ArgValue:
    kind = type(default)
    if kind is tuple:
        return _orders(name, key, value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(
            f'argument {key!r} of scan {name!r} is {value!r}; allowed is {kind.__name__}, such as {default!r}'
        )
    if kind is int and not -(2**63) <= value < 2**63:
        raise ValueError(f'argument {key!r} of scan {name!r} is {value}; allowed are 64-bit integers')
    return value


def _size(name: str, value: int) -> int:
    size = operator.index(value)
    if size < 1:
        raise ValueError(f'{name} is {value!r}; allowed are integers from 1')
    return size


def check_entries(entries: int, order: str, height: int, width: int) -> None:
    """Raise `ValueError` if a table, or the padded grid that it is made from, has more entries than are allowed."""
    if entries > MAX_ENTRIES:
        raise ValueError(f'scan {order} at {height} x {width} has {entries} entries; allowed are up to {MAX_ENTRIES}')


@lru_cache(maxsize=32)
def _table(order: ScanOrder, height: int, width: int) -> np.ndarray:
    strategy = order.strategy
    check_entries(order.directions * height * width, order.to_json(), height, width)
    args: dict[str, Any] = dict(order.args)
    if strategy.takes_directions:
        args['directions'] = order.directions
    table = np.asarray(strategy.build(height, width, **args))
    if table.ndim == 1:
        table = _from_path(order, table, height, width, args)
    shape = (order.directions, order.steps(height, width))
    where = f'scan {order.to_json()} at {height} x {width}'
    if table.shape != shape or table.dtype.kind not in 'iu':
        raise ValueError(f'{where} gives {table.dtype} {table.shape}; expected integers of shape {shape}')
    tokens = height * width
    last = tokens if order.zeros else tokens - 1
    if table.size and (table.min() < 0 or table.max() > last):
        raise ValueError(f'{where} visits tokens {table.min()}..{table.max()}; allowed are 0..{last}')
    once = strategy.permutation and not order.parts  # which are checked one by one
    if once and any((np.bincount(row, minlength=tokens)[:tokens] != 1).any() for row in table):
        raise ValueError(f'{where} visits a token twice or not at all, yet is registered as a permutation')
    table = table[:, ::-1].astype(np.int32) if order.backwards else table.astype(np.int32)
    table.flags.writeable = False
    return table


def _from_path(order: ScanOrder, path: np.ndarray, height: int, width: int, args: dict[str, Any]) -> np.ndarray:
    if order.directions == 1:
        return path[None]
    if order.directions == 2:
        return np.stack([path, path[::-1]])
    if order.directions != 4:
        raise ValueError(f'scan {order.name!r} returns a path: that gives 1, 2 or 4 directions, not {order.directions}')
    other = np.asarray(order.strategy.build(width, height, **args))
    if other.shape != path.shape:
        sizes = f'{path.size} steps at {height} x {width} and {other.size} at {width} x {height}'
        raise ValueError(f'scan {order.name!r} has {sizes}; four directions of a path need equally many')
    # positions of the transposed grid, back on the grid; the zero token stays where it is
    other = np.where(other < height * width, other % height * width + other // height, other)
    return np.stack([path, other, path[::-1], other[::-1]])


@lru_cache(maxsize=32)
def _inverse(order: ScanOrder, height: int, width: int) -> np.ndarray:
    table = _table(order, height, width)
    directions, steps = table.shape
    inverse = np.full((directions, height * width + order.zeros), steps, np.int32)
    np.minimum.at(inverse, (np.arange(directions)[:, None], table), np.arange(steps, dtype=np.int32))
    inverse = inverse[:, : height * width]
    inverse[inverse == steps] = -1
    inverse.flags.writeable = False
    return inverse
