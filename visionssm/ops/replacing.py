"""A mode that puts our functions in the place of torch's, and how to pause it.

While it is on, torch asks it at every function, method and attribute of a tensor, about 1 us each. An operator that
looks at its tensors a hundred times would take three times as long, so operators pause it for as long as they run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_here = threading.local()


class Replacing(TorchFunctionMode):
    """Whoever calls one of `functions`, by whichever module, gets what it is mapped to."""

    def __init__(self, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = functions

    def __enter__(self):
        """Switch it on, for this thread."""
        self.before = is_on()
        _here.on = True
        return super().__enter__()

    def __exit__(self, *error):
        """Switch it off."""
        _here.on = self.before
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.functions.get(func, func)(*args, **(kwargs or {}))


def is_on() -> bool:
    """Whether the mode is on in this thread."""
    return getattr(_here, 'on', False)


def others_are_on() -> bool:
    """Whether a mode of somebody else replaces or watches functions."""
    return torch._C._len_torch_function_stack() > is_on()


def paused(*tensors: Any) -> AbstractContextManager[Any]:
    """Without the mode, if it is on, alone, and no tensor of another class has functions of its own."""
    if torch.compiler.is_compiling() or not is_on() or others_are_on():
        return _NOTHING
    return torch._C.DisableTorchFunction() if all(x is None or type(x) in PLAIN for x in tensors) else _NOTHING


PLAIN = (torch.Tensor, torch.nn.Parameter)  # not a stand-in of a tracer, nor quantised, nor distributed
_NOTHING = nullcontext()
