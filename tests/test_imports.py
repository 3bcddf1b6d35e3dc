"""Who may import what, and what importing the package must not do."""

import ast
import graphlib
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
    'triton', 'visionssm_kernels', 'matplotlib', 'sklearn', 'tqdm', 'transformers', 'onnx', 'onnxruntime', 'openvino',
    'torchao', 'einops', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mamba_ssm', 'causal_conv1d', 'scipy', 'torchvision',
}  # fmt: skip
# rooms of the package from the ground up: a module imports from its own room and from those before it, also inside
# functions; a top-level module is a room of its own
ROOMS = (
    'version', 'files', 'extras', 'testing', 'scans', 'ops', 'layers', 'weights', 'models', 'catalog', 'hub', 'data',
    'apps', 'train', 'compare', 'demo', 'openmmlab', 'cli',
)  # fmt: skip
# of what is not ours, what a room must not import anywhere
FORBIDDEN = {
    'ops': ('timm',),
    'scans': ('timm',),
    'layers': ('timm.models',),
    'models': ('timm.models.layers', 'triton'),
}


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


def room(name: str) -> str:
    """The room of a module of ours; '' for the package itself and its `__main__`, which are above all rooms."""
    parts = name.split('.')
    return parts[1] if len(parts) > 1 and parts[1] != '__main__' else ''


def own_imports(file: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it."""
    modules = {module_name(other) for other in PACKAGE_FILES}
    return {name for name in imports(file) if name in modules and room(name)}


def test_rooms_are_listed_and_say_what_they_are_for():
    assert {room(module_name(file)) for file in PACKAGE_FILES} - {''} == set(ROOMS)
    for file in (ROOT / 'visionssm').glob('*/__init__.py'):
        assert ast.get_docstring(ast.parse(file.read_text())), relative(file)


@pytest.mark.parametrize('file', PACKAGE_FILES, ids=relative)
def test_imports_point_downwards(file):
    own = room(module_name(file))
    allowed = ROOMS[: ROOMS.index(own) + 1] if own else ROOMS
    above = {name for name in own_imports(file) if room(name) not in allowed}
    assert not above, f'{relative(file)} is in {own} and imports {above} from above'
    if own == 'ops':  # it could leave for a package of its own
        assert {room(name) for name in own_imports(file)} <= {'ops'}, relative(file)
    other = {name for name in imports(file) if inside(name, FORBIDDEN.get(own, ()))}
    assert not other, f'{relative(file)} imports {other}'


def test_no_module_imports_itself_through_others():
    edges = {module_name(file): own_imports(file) for file in PACKAGE_FILES}
    packages = {module_name(file) for file in PACKAGE_FILES if file.name == '__init__.py'}
    # a package's face imports its modules, which may name the package to reach a sibling's module
    edges = {name: {other for other in found if other not in packages} for name, found in edges.items()}
    assert list(graphlib.TopologicalSorter(edges).static_order())


def test_private_modules_stay_in_their_room():
    for file in PACKAGE_FILES:
        own = room(module_name(file))
        private = {name for name in own_imports(file) if '._' in name and room(name) != own}
        assert not private, f'{relative(file)} imports {private}'


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
