import importlib.util
import os

# one thread per process where several share the cores: the maps of tests are small
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch  # noqa: E402

if not torch.cuda.is_available():  # before anything imports triton: it reads this once
    os.environ.setdefault('TRITON_INTERPRET', '1')

# its tests run where OpenMMLab is installed: `pip install ".[openmmlab,test]"`
collect_ignore = [] if importlib.util.find_spec('mmengine') else ['openmmlab']


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        terminalreporter.write_line('left out: tests/openmmlab, as mmengine is not installed')
