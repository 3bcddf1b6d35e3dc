import importlib.util
import os

import torch

if not torch.cuda.is_available():  # before anything imports triton: it reads this once
    os.environ.setdefault('TRITON_INTERPRET', '1')

# its tests run where OpenMMLab is installed: `pip install ".[openmmlab,test]"`
collect_ignore = [] if importlib.util.find_spec('mmengine') else ['openmmlab']


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        terminalreporter.write_line('left out: tests/openmmlab, as mmengine is not installed')
