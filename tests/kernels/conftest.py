"""Kernels run on the GPU if there is one, else in the interpreter, asked for before triton is imported."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    if 'triton' in sys.modules and os.environ.get('TRITON_INTERPRET') != '1':
        raise RuntimeError('triton was imported before TRITON_INTERPRET=1 was set: kernels cannot run here')
    os.environ['TRITON_INTERPRET'] = '1'


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch):
    """Spare the interpreter patching `triton.language` at every call of a device function: a third of the time."""
    if os.environ.get('TRITON_INTERPRET') != '1':
        return
    from triton.runtime import interpreter

    call = interpreter.InterpretedFunction.__call__

    def quick(self, *args, **kwargs):
        if self.fn.__module__.startswith('visionssm_kernels'):  # called from a kernel, which has patched it
            return self.rewrite()(*args, **kwargs)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, '__call__', quick)


@pytest.fixture(autouse=True)
def no_lucky_memory(monkeypatch):
    """Fill what is not initialised with NaN, so that nothing passes because memory happened to hold zeros."""
    new_empty = torch.Tensor.new_empty

    def filled(self, *args, **kwargs):
        x = new_empty(self, *args, **kwargs)
        return x.fill_(float('nan')) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, 'new_empty', filled)
