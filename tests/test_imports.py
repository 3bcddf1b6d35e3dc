"""Who may import what, and what importing the package must not do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = (ROOT, ROOT / 'kernels')
PACKAGE_FILES = sorted((ROOT / 'visionssm').rglob('*.py'))
KERNEL_FILES = sorted((ROOT / 'kernels').rglob('*.py'))
# optional, slow or not always there: never at module level, so that `import visionssm` needs torch and timm alone
LAZY = {
    'triton', 'visionssm_kernels', 'matplotlib', 'sklearn', 'tqdm', 'transformers', 'onnx', 'onnxruntime', 'einops',
    'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mamba_ssm', 'causal_conv1d', 'scipy', 'torchvision',
}  # fmt: skip
# folder: what it must not import, anywhere in the file
FORBIDDEN = {
    'visionssm/ops': ('timm', 'visionssm.layers', 'visionssm.models', 'visionssm.scans', 'visionssm.openmmlab'),
    'visionssm/scans': (
        'timm', 'visionssm.ops', 'visionssm.layers', 'visionssm.models', 'visionssm.openmmlab', 'visionssm_kernels',
    ),
    'visionssm/layers': ('timm.models', 'visionssm.models', 'visionssm.openmmlab', 'visionssm_kernels'),
    'visionssm/models': ('timm.models.layers', 'visionssm.openmmlab', 'visionssm_kernels', 'triton'),
}  # fmt: skip


def module_name(file: Path) -> str:
    root = next(root for root in reversed(SOURCE_ROOTS) if file.is_relative_to(root))
    parts = file.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports(file: Path, module_level: bool = False) -> set[str]:
    """Absolute names of all modules that a file imports, or only those imported while it is itself imported."""
    name = module_name(file)
    package = name.split('.') if file.name == '__init__.py' else name.split('.')[:-1]
    found = set()

    def visit(node: ast.AST) -> None:
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = '.'.join([*base, *filter(None, [node.module])])
            found.update([source, *(f'{source}.{alias.name}' for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text()))
    return found


def inside(name: str, packages) -> bool:
    return any(name == package or name.startswith(f'{package}.') for package in packages)


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_kernels_is_no_package():
    # with this file the folder would hide Hugging Face's `kernels` from every process started in the root
    assert not (ROOT / 'kernels' / '__init__.py').exists()


@pytest.mark.parametrize('file', PACKAGE_FILES, ids=relative)
def test_optional_packages_are_imported_late(file):
    if 'openmmlab' in file.parts:
        pytest.skip('imported only when asked for')
    assert not {name for name in imports(file, module_level=True) if inside(name, LAZY)}


@pytest.mark.parametrize('folder', FORBIDDEN)
def test_imports_point_downwards(folder):
    for file in sorted((ROOT / folder).rglob('*.py')):
        found = {name for name in imports(file) if inside(name, FORBIDDEN[folder])}
        assert not found, f'{relative(file)} imports {found}'


def test_only_the_dispatcher_names_the_kernels():
    for file in PACKAGE_FILES:
        if relative(file) != 'visionssm/ops/dispatch.py':
            assert not {name for name in imports(file) if inside(name, ['visionssm_kernels'])}, relative(file)


def test_families_do_not_import_each_other():
    """Nothing imports a family but the package itself and what wraps one for detectors."""
    files = {module_name(file): file for file in (ROOT / 'visionssm/models').glob('*.py')}
    families = {name for name, file in files.items() if '@register_model' in file.read_text()}
    for name in files.keys() - {'visionssm.models', 'visionssm.models.adapter'}:
        assert not {other for other in imports(files[name]) if inside(other, families - {name})}, name


def test_no_private_modules_of_timm():
    for file in PACKAGE_FILES:
        private = {name for name in imports(file) if inside(name, ['timm']) and '._' in name}
        assert not private, f'{relative(file)} imports {private}'


@pytest.mark.parametrize('file', KERNEL_FILES, ids=relative)
def test_kernels_need_torch_and_triton_alone(file):
    assert not {name for name in imports(file) if inside(name, ['visionssm', 'timm', 'einops'])}


def test_import_without_optional_packages_and_without_a_compiler():
    code = f"""
import subprocess, sys
for name in {sorted(LAZY - {'torchvision', 'tqdm'})}:  # timm itself imports these two
    sys.modules[name] = None
import torch, timm
subprocess.Popen = subprocess.run = None  # starting any process fails
import visionssm
assert 'visionssm.ops.cpu' not in sys.modules, 'the C++ backend is loaded at first use'
assert 'visionssm.demo' not in sys.modules and 'visionssm.cli' not in sys.modules
timm.create_model('test_vmamba')
print(*timm.list_models(['vmamba_*', 'vim_*']))
"""
    # -P: the current folder must not be on the path by accident
    result = subprocess.run(
        [sys.executable, '-P', '-c', code], capture_output=True, text=True, timeout=120, check=False
    )
    assert {'vmamba_tiny_s1l8', 'vim_tiny_patch16_224'} <= set(result.stdout.split()), result.stderr
