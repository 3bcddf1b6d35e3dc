import importlib.util
import os

# one thread per process where several share the cores: the maps of tests are small
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch  # noqa: E402

if not torch.cuda.is_available():  # before anything imports triton: it reads this once
    os.environ.setdefault('TRITON_INTERPRET', '1')

# their tests run where OpenMMLab and transformers are installed: the extras `openmmlab` and `clients`
OTHERS = {'openmmlab': 'mmengine', 'clients': 'transformers'}
collect_ignore = [folder for folder, package in OTHERS.items() if not importlib.util.find_spec(package)]


def pytest_terminal_summary(terminalreporter):
    for folder in collect_ignore:
        terminalreporter.write_line(f'left out: tests/{folder}, as {OTHERS[folder]} is not installed')
