"""Compiled code without a GPU, the model of bytes, and the parts of the GPU report that need none."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton')
ROOT = Path(__file__).parents[2]


def run_tool(*command: str, timeout: float = 900) -> subprocess.CompletedProcess:
    """Run a tool in a process that compiles kernels instead of interpreting them."""
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'kernels')])
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def resources(*arguments: str) -> None:
    done = run_tool('tools/kernel_resources.py', *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('target', ['sm_80', 'sm_90', 'sm_100', 'sm_120', 'gfx942'])
def test_compiles_without_spilling(target):
    """The models' kernels in one dtype; all dtypes and problems: `python tools/kernel_resources.py`."""
    dtype = {'sm_80': 'bf16', 'sm_120': 'fp32'}.get(target, 'fp16')
    resources('--targets', target, '--dtypes', dtype, '--problems', 'vmamba', 'vmamba_m2', 'vim', 'lbvim_w8')


@pytest.mark.slow
def test_every_problem_compiles():
    resources('--targets', 'sm_90', '--dtypes', 'fp16')


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))


def test_resource_check_fails_on_spill_and_growth(tools):
    check = load_tool('kernel_resources').check
    assert check({'registers': 110, 'spilled': 0, 'shared': 0}, [100, 0, 0], 'k') == []
    assert 'registers' in check({'registers': 111, 'spilled': 0, 'shared': 0}, [100, 0, 0], 'k')[0]
    assert 'spilled' in check({'registers': 10, 'spilled': 8, 'shared': 0}, None, 'k')[0]


def test_table_has_every_problem_and_no_spill(tools):
    variants = load_tool('_kernel_variants')
    table = json.loads((ROOT / 'kernels' / 'resources.json').read_text())['3.9']
    for problem in variants.PROBLEMS:
        for dtype in variants.DTYPES:
            for kernel in ('forward.fwd', 'backward.bwd'):
                entry = table[f'{problem}.{dtype}.{kernel}']
                assert set(entry) == set(variants.TARGETS)
                assert all(spilled == 0 for _, spilled, _ in entry.values())


def test_model_of_bytes(tools):
    """The figures that were worked out by hand for K = 4, N = 1 (B, C and the order left out)."""
    model = load_tool('_kernel_bytes')
    problem = model.PROBLEMS['vmamba']
    assert model.three_kernel_bytes(problem, 2, backward=False) == pytest.approx(62, abs=0.1)
    assert model.moved_bytes(problem, 2, backward=False) == pytest.approx(24, abs=0.1)
    assert model.moved_bytes(problem, 4, backward=False) == pytest.approx(28, abs=0.2)


def test_loops_of_a_disassembly(tools):
    model = load_tool('_kernel_bytes')
    text = """
.L_x_0:
        /*0010*/                   IADD3 R1, R1, -0x8, RZ ;
.L_x_1:
        /*0020*/                   FADD R1, R1, R2 ;
        /*0030*/              @P0 BRA `(.L_x_1) ;
        /*0040*/              @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2) ;
"""
    assert model.loops(text) == [(1, 2), (0, 3)]


def test_report_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    done = run_tool('tools/gpu_report.py', '--out', str(tmp_path))
    assert done.returncode == 2 and 'no GPU' in done.stderr and not list(tmp_path.iterdir())


def test_dry_run_of_the_report(tmp_path):
    done = run_tool('tools/gpu_report.py', '--dry-run', '--out', str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'gpu_report.json').read_text())
    assert report['dry_run'] and len(report['scans']) == 2
    assert all(row['triton training']['ms'] > 0 for row in report['scans'])
    assert report['steps'][0]['step']['images_per_s'] > 0
    assert 'not GPU figures' in (tmp_path / 'gpu_report.md').read_text()


def test_the_report_checks_the_device_that_it_measures(tmp_path, monkeypatch):
    report, commands = load_tool('gpu_report'), []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(report, 'environment', lambda device: {'device': device})
    for rows in ('scan_rows', 'model_rows', 'step_rows'):
        monkeypatch.setattr(report, rows, lambda *arguments: [])
    monkeypatch.setattr(report, 'run_check', lambda command: commands.append(command) or {'code': 0, 'last_line': ''})
    assert report.main(['--out', str(tmp_path)]) == 0
    assert ['visionssm', 'selfcheck', '--device', 'cuda'] in commands


def test_compared_forms_agree():
    report = load_tool('gpu_report')
    for shape in report.DRY_SHAPES:
        inputs = report.make_inputs(shape, torch.float64, 'cpu')
        inputs = {name: x if x is None or name == 'order' else x.double() for name, x in inputs.items()}
        ours = report.fused(inputs, 'torch')
        theirs = report.copy_scan_merge(report.in_visiting_order(inputs), 'torch')
        torch.testing.assert_close(ours, theirs)


def test_goals():
    report = load_tool('gpu_report')
    shape = report.SHAPES[0]._asdict()

    def row(ours, theirs, forward):
        return {
            'shape': shape, 'floor_ms': 0.4, 'triton': {'ms': forward},
            'triton training': {'ms': ours, 'peak_mib': 40.0},
            'copy_scan_merge training': {'ms': theirs, 'peak_mib': 100.0},
        }  # fmt: skip

    assert 'NOT' not in report.goals([row(1.0, 2.5, 0.5)])[0]
    assert report.goals([row(1.0, 1.5, 0.8)])[0].count('NOT met') == 2
