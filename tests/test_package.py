"""What pyproject.toml and the tree say about the package must be true."""

import re
from importlib import metadata
from pathlib import Path

import pytest

import visionssm
from visionssm.scans import registry

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / 'pyproject.toml').read_text()
README = (ROOT / 'README.md').read_text()
# pages whose examples need no files and nothing beside the extra `test`
EXAMPLES = (
    'README.md',
    *(f'docs/{page}.md' for page in ('adding-a-family', 'features', 'index', 'op', 'scan-orders', 'segmentation')),
)
COMMANDS = re.findall(r'```sh\n(.*?)```', README, re.S)


def test_version_is_semantic_and_in_one_place():
    assert re.fullmatch(r'\d+\.\d+\.\d+([ab.]\w+)?', visionssm.__version__)
    assert 'attr = "visionssm.version.__version__"' in PYPROJECT
    assert visionssm.__version__ not in PYPROJECT


def test_changelog_has_this_version():
    assert f'## [{visionssm.__version__}]' in (ROOT / 'CHANGELOG.md').read_text()


def test_installed_metadata():
    try:
        distribution = metadata.distribution('visionssm')
    except metadata.PackageNotFoundError:
        pytest.skip('runs from the source tree, not installed')
    assert distribution.version == visionssm.__version__
    assert distribution.metadata['License-Expression'] == 'Apache-2.0'
    assert any(entry.name == 'visionssm' and entry.value == 'visionssm.cli:main' for entry in distribution.entry_points)
    needed = {re.match(r'[\w-]+', line)[0] for line in distribution.requires if 'extra ==' not in line}
    assert needed == {'torch', 'timm', 'safetensors', 'huggingface-hub', 'numpy', 'pillow', 'pyyaml'}


def test_shipped_files_are_where_the_build_looks():
    assert (ROOT / 'visionssm/py.typed').is_file()
    assert (ROOT / 'visionssm/ops/selective_scan.cpp').is_file()
    assert (ROOT / 'kernels/visionssm_kernels/__init__.py').is_file()
    assert (ROOT / 'LICENSE').read_text().lstrip().startswith('Apache License')


def test_readme_starts_with_the_two_commands():
    assert 'visionssm demo' in COMMANDS[0] and 'pytest' in COMMANDS[1]
    assert COMMANDS[1] in (ROOT / '.ci/run').read_text()


@pytest.mark.parametrize(
    'code', [code for name in EXAMPLES for code in re.findall(r'```python\n(.*?)```', (ROOT / name).read_text(), re.S)]
)
def test_examples_run(code, monkeypatch):
    monkeypatch.setattr(registry, '_STRATEGIES', dict(registry._STRATEGIES))  # some register an order
    exec(compile(code, 'example', 'exec'), {})


@pytest.mark.parametrize('name', ['README.md', 'CHANGELOG.md'])
def test_links_to_files_lead_somewhere(name):
    for target in re.findall(r'\]\(([^)#:]+)\)', (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target
