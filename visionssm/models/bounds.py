"""What a model's arguments may ask for, found out before any memory is taken: they may come from anybody's file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

# numbers in parameters and buffers, of models from files and of all others; VISIONSSM_MAX_PARAMETERS replaces both
FROM_FILES, OTHERS = 1 << 27, 1 << 30
_MODULES = 1 << 13  # the largest published models have a fifth of it
_DEPTH, _NUMBER, _VALUES = 1 << 10, 1 << 24, 1 << 12
_VARIABLE = 'VISIONSSM_MAX_PARAMETERS'
_counting: ContextVar[bool] = ContextVar('visionssm_counting', default=False)


class _TooLargeError(ValueError):
    pass


def check_size(
    name: str, make: Callable[[], nn.Module], args: Mapping[str, Any], from_file: bool, held: int = 0
) -> None:
    """Raise unless a model fits what is allowed; nothing is allocated.

    A model of a file's may have 2^27 parameters, any other 2^30; or twice as many as its weights hold, or as its
    registered form has. The environment variable `VISIONSSM_MAX_PARAMETERS` allows another number.

    Args:
        name: Registered name.
        make: Makes it with `args`; called on the meta device.
        args: Arguments of the model.
        from_file: Whether they come from a file: then whatever is wrong with them is a `ValueError`.
        held: Numbers in its weights.

    Raises:
        ValueError: If it does not fit.
    """
    if _counting.get():  # of a model that is being counted
        return
    text = os.environ.get(_VARIABLE, '')
    if text and not text.isdecimal():
        raise ValueError(f'{_VARIABLE} is {text!r}; allowed are integers')
    allowed = int(text) if text else max(FROM_FILES if from_file else OTHERS, 2 * held)
    try:
        _check_args(args)
        try:
            _count(make, allowed)
        except _TooLargeError:
            own = 2 * _count(lambda: timm.create_model(name), 1 << 62)
            if text or own <= allowed:
                raise
            _count(make, own)
    except _TooLargeError as error:
        raise ValueError(f'{name} with these arguments {error}; {_VARIABLE} allows another number') from None
    except (ValueError, OSError):
        raise
    except Exception as error:
        if not from_file:
            raise
        raise ValueError(f'{name} cannot be made with these arguments: {type(error).__name__}, {error}') from error


def _check_args(args: Mapping[str, Any]) -> None:
    """Numbers that loops and tables of a constructor can follow; what it makes of them is counted later."""
    for name, value in args.items():
        values = list(_flat(value, name))
        numbers = [x for x in values if isinstance(x, int | float)]
        if 'depth' in name and sum(numbers) > _DEPTH and _VARIABLE not in os.environ:
            raise _TooLargeError(f'has {name}={_short(value)}, over {_DEPTH} blocks')
        if large := next((x for x in numbers if abs(x) > _NUMBER), None):
            raise ValueError(f'{name} is {_short(large)}; allowed are numbers up to {_NUMBER}')


def _flat(value: Any, name: str, depth: int = 0) -> Iterator[Any]:
    """The values in lists and dicts; no more than a person would write."""
    waiting, count = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _VALUES or depth > 16:
            raise ValueError(f'{name} has more than {_VALUES} values, or lists in lists')
        if isinstance(value, Mapping | list | tuple):
            waiting += [(x, depth + 1) for x in (value.values() if isinstance(value, Mapping) else value)]
        else:
            yield value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f'{text[:80]}...'


def _count(make: Callable[[], nn.Module], allowed: int) -> int:
    """Numbers in a model, made without memory; stops as soon as they are more than allowed."""
    with torch.device('meta'), _registrations(allowed) as counted:
        make()
    return counted['parameters']


@contextmanager
def _registrations(allowed: int) -> Iterator[dict[str, int]]:
    """Count what this thread registers in modules."""
    thread, counted = threading.get_ident(), {'parameters': 0, 'modules': 0}

    def tensor(module: nn.Module, name: str, x: Tensor | None) -> None:
        if threading.get_ident() == thread and x is not None:
            counted['parameters'] += x.numel()
            if counted['parameters'] > allowed:
                raise _TooLargeError(f'has more than {allowed} parameters')

    def child(module: nn.Module, name: str, x: nn.Module | None) -> None:
        if threading.get_ident() == thread:
            counted['modules'] += 1
            if counted['modules'] > max(_MODULES, allowed >> 17):
                raise _TooLargeError(f'has more than {max(_MODULES, allowed >> 17)} modules')

    handles = [
        hooks.register_module_parameter_registration_hook(tensor),
        hooks.register_module_buffer_registration_hook(tensor),
        hooks.register_module_module_registration_hook(child),
    ]
    token = _counting.set(True)
    try:
        yield counted
    finally:
        _counting.reset(token)
        for handle in handles:
            handle.remove()
