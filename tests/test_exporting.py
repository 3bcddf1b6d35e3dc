"""Every family as files for other runtimes: what `export` writes agrees with the model, and needs nothing of ours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch.utils._pytree import tree_leaves

from visionssm import cli
from visionssm.apps import export
from visionssm.ops import selective_scan, selective_scan_ref
from visionssm.ops.chunked import forward_at_once
from visionssm.ops.inputs import ScanInputs
from visionssm.ops.plain import plain_program
from visionssm.weights.published import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    name for family in FAMILIES.values() if not family.borrowed for name in family.models if name.startswith('test_')
]
# in a process without timm and without this package
ALONE = """
import sys
sys.modules['timm'] = sys.modules['visionssm'] = None
import torch
images, expected = torch.load(sys.argv[2])
if sys.argv[1] == 'aoti':
    run = torch._inductor.aoti_load_package(sys.argv[3])
else:
    run = torch.export.load(sys.argv[3]).module()
with torch.no_grad():
    error = (run(images) - expected).abs().max() / expected.std()
assert error < 1e-4, error
"""


def program(model, size=96):
    batch = {0: torch.export.Dim('batch')}
    return torch.export.export(model.requires_grad_(False), (torch.randn(2, 3, size, size),), dynamic_shapes=(batch,))


def run_alone(form, file, model, tmp_path, code=ALONE):
    images = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        torch.save((images, model(images)), tmp_path / 'expected.pt')
    command = [sys.executable, '-P', '-c', code, form, str(tmp_path / 'expected.pt'), str(file)]
    subprocess.run(command, check=True, timeout=300)


def others_than_core(program):
    operators = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    return {str(op) for op in operators if torch.Tag.core not in op.tags}


@pytest.mark.parametrize('window', [0, 5])
@pytest.mark.parametrize('mode', [0, 1, 2])
@pytest.mark.parametrize('length', [1, 16, 50])
def test_scan_at_once_is_the_definition(length, mode, window):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    shape = 2, length, 3
    tensors = (
        draw(2, length, 4), draw(*shape, 4), -torch.exp(draw(3, 4, 2)), draw(*shape, 2), draw(*shape, 2), draw(3, 4),
        draw(2, length, 4), draw(3, 4),
    )  # fmt: skip
    order = torch.stack([torch.randperm(length, generator=g) for _ in range(3)])
    expected = selective_scan_ref(
        *tensors, True, order=order, merge=mode == 0, per_step=mode == 2, local_window=window or None,
        return_last_state=True,
    )  # fmt: skip
    found = forward_at_once(ScanInputs(*tensors, order, None, True, mode, window, True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', SMALL)
def test_plain_program(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    plain = plain_program(program(model))
    assert not [node for node in plain.graph.nodes if 'visionssm' in str(node.target)]
    images = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        expected = model(images)
        assert (plain.module()(images) - expected).abs().max() < 1e-4 * expected.std()


class Scans(torch.nn.Module):
    """Of every other pixel, so that the number of steps is computed from the sides of an image."""

    def forward(self, x, A):
        u = x[:, ::2, ::2].flatten(1, 2)
        B = u.unsqueeze(2).expand(-1, -1, 2, -1)
        t = torch.arange(u.shape[1])
        order = torch.stack([t, t.flip(0)])
        common = {'delta': B, 'A': A, 'B': B[..., :1], 'C': B[..., 1:2], 'delta_softplus': True, 'order': order}
        merged = selective_scan(u, z=u, local_window=3, **common)
        return merged, selective_scan(u, z=u, merge=False, per_step=True, D=A[..., 0], return_last_state=True, **common)


def test_scans_of_computed_lengths():
    torch.manual_seed(0)
    A, free = -torch.rand(2, 4, 1), torch.export.Dim.AUTO
    shapes = (dict.fromkeys(range(3), free), None)
    whole = torch.export.export(Scans(), (torch.randn(2, 12, 14, 4), A), dynamic_shapes=shapes)
    core = plain_program(whole, core=True)
    assert not others_than_core(core)
    run = core.module()
    for sides in ((4, 5), (31, 64), (45, 47)):
        x = torch.randn(3, *sides, 4)
        for found, expected in zip(tree_leaves(run(x, A)), tree_leaves(Scans()(x, A)), strict=True):
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_program_of_any_size(tmp_path):
    model, file = timm.create_model('test_vmamba', depths=(1, 0, 0, 0)), tmp_path / 'model.pt2'
    checks = export.export_model(model, file, 'exported-program', (3, 96, 96), dynamic_size=True)
    assert [check.shape for check in checks] == [(2, 3, 96, 96), (2, 3, 128, 96)] and file.is_file()


def test_program_runs_alone(tmp_path):
    model, file = timm.create_model('test_lbvim').eval(), tmp_path / 'model.pt2'
    export.export_model(model, file, 'exported-program', (3, 96, 96))
    run_alone('exported-program', file, model, tmp_path)


def test_core_program():
    core = plain_program(program(timm.create_model('test_vmamba').eval()), core=True)
    assert not others_than_core(core)


@pytest.mark.parametrize('operators', ['plain', 'ours'])
def test_aoti_runs_alone(operators, tmp_path):
    model, file = timm.create_model('test_vmamba', depths=(1, 0, 0, 0)).eval(), tmp_path / 'model.pt2'
    export.export_model(model, file, 'aoti', (3, 96, 96), operators=operators)
    code = (
        ALONE
        if operators == 'plain'
        else ALONE.replace("sys.modules['timm'] = sys.modules['visionssm'] = None", 'import visionssm')
    )
    run_alone('aoti', file, model, tmp_path, code)


def test_commands_and_code_of_the_page(tmp_path, monkeypatch, capsys):
    """As docs/exporting.md has them, with small models; what AOTInductor writes is tested above."""
    page = (ROOT / 'docs/exporting.md').read_text()
    blocks = re.findall(r'^```(sh|python)\n(.+?)^```', page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(export.FORMATS, 'aoti', export.FORMATS['exported-program'])
    (tmp_path / 'runs').mkdir()
    save_for_hf(timm.create_model('test_mambaout'), tmp_path / 'runs/demo', safe_serialization=True)
    model, images = timm.create_model('test_mambaout').eval(), torch.randn(2, 3, 96, 96)
    names = {'model': model, 'images': images, 'torch': torch}
    for kind, block in blocks:
        if kind == 'python':
            exec(block.replace('224', '96'), names)
            continue
        for line in re.findall(r'^visionssm (export .+)$', block, re.M):
            small = 'test_mambaout' if 'program' in line else r'test_\1'
            arguments = shlex.split(re.sub(r'(vmamba|vim)_tiny\w+', f'{small} --random', line))
            assert cli.main(arguments) == 0, line
            file = arguments[arguments.index('--output') + 1]
            said = capsys.readouterr().out
            assert said.count(': differs by') == (2 if '--dynamic-size' in line else 1) and f'wrote {file}' in said
            assert (tmp_path / file).is_file()
    assert len(blocks) == 4


def test_torchscript_command(tmp_path, capsys):
    file = tmp_path / 'm.pt'
    arguments = [
        'export',
        'test_vmamba',
        '--random',
        '--format',
        'torchscript',
        '--output',
        str(file),
        '--dynamic-size',
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert '2 x 3 x 96 x 96: differs by' in said and '2 x 3 x 128 x 96: differs by' in said and file.is_file()


def test_a_program_that_cannot_be_run(tmp_path, monkeypatch):
    def fail(images):
        raise RuntimeError('node Scan\nobject is not initialized')

    form = export.FORMATS['torchscript']
    monkeypatch.setitem(export.FORMATS, 'torchscript', form._replace(read=lambda file: fail))
    with pytest.raises(ValueError, match='the torchscript program cannot be run: object is not initialized; nothing'):
        export.export_model(timm.create_model('test_vmamba'), tmp_path / 'model.pt', 'torchscript', (3, 96, 96))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--format', 'coreml'], 'allowed are onnx, exported-program, aoti, torchscript, openvino'),
        (['--format', 'torchscript'], 'must end in .pt or .ts'),
        (['--format', 'onnx', '--operators', 'core'], 'operators can be chosen for exported-program and aoti'),
        (['--format', 'onnx', '--batch', '1'], 'allowed are integers from 2'),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    file = tmp_path / 'model.onnx'
    assert cli.main(['export', 'test_vmamba', '--random', '--output', str(file), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_that_disagrees(tmp_path, monkeypatch):
    form = export.FORMATS['torchscript']
    monkeypatch.setitem(export.FORMATS, 'torchscript', form._replace(read=lambda file: lambda images: images.sum()))
    with pytest.raises(ValueError, match='nothing was written'):
        export.export_model(timm.create_model('test_vmamba'), tmp_path / 'model.pt', 'torchscript', (3, 96, 96))
    assert not list(tmp_path.iterdir())
