import importlib.util
import os
import re
from pathlib import Path

# one thread per process where several share the cores: the maps of tests are small
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():  # before anything imports triton: it reads this once
    os.environ.setdefault('TRITON_INTERPRET', '1')

# their tests run where OpenMMLab and transformers are installed: the extras `openmmlab` and `clients`
OTHERS = {'openmmlab': 'mmengine', 'clients': 'transformers'}
collect_ignore = [folder for folder, package in OTHERS.items() if not importlib.util.find_spec(package)]


@pytest.fixture(scope='session')
def lines():
    """A function that runs a block of Python from docs/clients.md and gives the names that it makes."""
    page = (Path(__file__).parents[1] / 'docs/clients.md').read_text(encoding='utf-8')

    def run(section, number, instead=(), **names):
        text = re.search(rf'^## {section}\b.*?(?=^## |\Z)', page, re.M | re.S)[0]
        code = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)[number]
        for old, new in dict(instead).items():  # smaller models
            assert old in code
            code = code.replace(old, new)
        exec(compile(code, f'docs/clients.md: {section}', 'exec'), names)
        return names

    return run


def pytest_terminal_summary(terminalreporter):
    for folder in collect_ignore:
        terminalreporter.write_line(f'left out: tests/{folder}, as {OTHERS[folder]} is not installed')
