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
