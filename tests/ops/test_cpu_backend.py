"""The compiled kernel's life: compiled once, shared by processes that start together, refused with a reason."""

import math
import os
import subprocess
import sys

import pytest
import torch

from visionssm.ops import BackendUnavailableError, available_backends, chunked, cpu, selective_scan
from visionssm.ops.dispatch import ScanProblem, backend_names, resolve

PROBE = (
    'import torch; from visionssm.ops import selective_scan as s; x = torch.ones(1, 4, 1, 2);'
    'print(s(x[:, :, 0], x, -torch.ones(1, 2, 1), x[..., :1], x[..., :1], backend={backend!r}).sum().item())'
)


def run(backend, **env):
    environment = {**os.environ, **env, 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-c', PROBE.format(backend=backend)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_together_share_one_library(tmp_path):
    processes = [run('cpu', VISIONSSM_CACHE=str(tmp_path)) for _ in range(2)]
    outputs = [p.communicate(timeout=300) for p in processes]
    assert all(p.returncode == 0 for p in processes), outputs
    assert len({out for out, _ in outputs}) == 1
    assert [p.suffix for p in tmp_path.iterdir()] == ['.so']  # one library, no half-built leftovers


def test_a_broken_library_in_the_cache_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv('VISIONSSM_CACHE', str(tmp_path))
    path = cpu.compile_library('extern "C" int f() { return 1; }')
    path.write_bytes(b'not a library')
    monkeypatch.setattr(cpu, 'compile_library', lambda source: path)
    cpu.library.cache_clear()
    try:
        with pytest.raises(cpu.CompileError, match='cannot be loaded'):
            cpu.library()
    finally:
        cpu.library.cache_clear()


def test_no_compiler_named_backend_raises_and_automatic_falls_back(tmp_path):
    missing = {'CXX': 'no-such-compiler', 'VISIONSSM_CACHE': str(tmp_path)}
    named = run('cpu', **missing)
    _, err = named.communicate(timeout=120)
    assert named.returncode != 0 and "'cpu' was asked for" in err and 'no-such-compiler' in err
    automatic = run(None, **missing)
    _, err = automatic.communicate(timeout=120)
    assert automatic.returncode == 0
    assert err.count("'cpu' not used") == 1 and 'no-such-compiler' in err  # said once


def test_compiler_errors_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv('VISIONSSM_CACHE', str(tmp_path))
    with pytest.raises(cpu.CompileError, match='failed'):
        cpu.compile_library('this is not C++')
    assert not list(tmp_path.iterdir())


def test_unwritable_cache_falls_to_the_temporary_folder(tmp_path, monkeypatch):
    blocked = tmp_path / 'file'
    blocked.write_text('')  # a file where a folder is wanted: mkdir fails for root too
    monkeypatch.setenv('VISIONSSM_CACHE', str(blocked / 'cache'))
    monkeypatch.setattr(cpu.tempfile, 'gettempdir', lambda: str(tmp_path / 'tmp'))
    path = cpu.compile_library('extern "C" int f() { return 2; }')
    assert path.is_relative_to(tmp_path / 'tmp')


def test_library_of_another_user_is_not_loaded(tmp_path, monkeypatch):
    if not hasattr(os, 'getuid'):
        pytest.skip('no user ids on this platform')
    path = tmp_path / 'x.so'
    path.write_text('')
    assert cpu._is_own(path)
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    if os.geteuid() == 0:  # root's files are everybody's
        os.chown(path, 54321, -1)
    assert not cpu._is_own(path)


def test_folder_that_everybody_may_write_to_is_not_used(tmp_path, monkeypatch):
    if os.name == 'nt':
        pytest.skip('no such permissions on this platform')
    shared = tmp_path / 'shared'
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv('VISIONSSM_CACHE', str(shared))
    monkeypatch.setattr(cpu.tempfile, 'gettempdir', lambda: str(tmp_path / 'tmp'))
    assert cpu.compile_library('extern "C" int f() { return 3; }').is_relative_to(tmp_path / 'tmp')
    assert not list(shared.iterdir())


def test_no_home(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    for name in ('VISIONSSM_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu.Path, 'home', no_home)
    monkeypatch.setattr(cpu.tempfile, 'gettempdir', lambda: str(tmp_path))
    assert cpu.cache_dir().parent == tmp_path


def fake_compiler(folder, monkeypatch, body):
    path = folder / 'slow-compiler'
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{body}\n')
    path.chmod(0o755)
    monkeypatch.setenv('CXX', str(path))
    monkeypatch.setenv('VISIONSSM_CACHE', str(folder / 'cache'))
    monkeypatch.setattr(cpu, '_PATIENCE_SECONDS', 0.2)


@pytest.mark.skipif(os.name == 'nt', reason='a shell script stands for the compiler')
def test_slow_compiler_is_waited_for(tmp_path, monkeypatch, caplog):
    fake_compiler(tmp_path, monkeypatch, 'sleep 1; while [ "$1" != -o ]; do shift; done; echo library > "$2"')
    assert cpu.compile_library('slow').read_text() == 'library\n'
    assert 'still compiling' in caplog.text


@pytest.mark.skipif(os.name == 'nt', reason='a shell script stands for the compiler')
def test_hanging_compiler_leaves_nothing(tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, 'exec sleep 60')
    monkeypatch.setattr(cpu, '_COMPILE_SECONDS', 0.4)
    with pytest.raises(cpu.CompileError, match='took more than'):
        cpu.compile_library('hangs')
    assert not list((tmp_path / 'cache').iterdir())


@pytest.fixture
def first_use(monkeypatch):
    """Nothing is known yet of the compiler or of which backend serves what."""
    cpu.library.cache_clear()
    resolve.cache_clear()
    monkeypatch.setattr(cpu, '_failed', (0.0, ''))
    yield
    cpu.library.cache_clear()
    resolve.cache_clear()


@pytest.mark.skipif(os.name == 'nt', reason='a shell script stands for the compiler')
@pytest.mark.parametrize('fault', ['exec sleep 60', 'kill -9 $$', 'exit 137'])
def test_interrupted_compiler_is_tried_again(fault, first_use, tmp_path, monkeypatch):
    """Asked for or not, the backend serves once the compiler does; until then nothing half-built is left."""
    built = cpu.library()._name  # what a compiler that is well writes after `-o`
    cpu.library.cache_clear()
    well = f'[ -e {tmp_path}/well ] && while [ "$1" != -o ]; do shift; done && exec cp {built} "$2"'
    fake_compiler(tmp_path, monkeypatch, f'{well}\n{fault}')
    monkeypatch.setattr(cpu, '_COMPILE_SECONDS', 0.4)
    problem = ScanProblem('cpu', torch.float32, 16, 64, 0)
    assert resolve('scan', '', problem) is chunked
    with pytest.raises(BackendUnavailableError, match=r'took more than|was killed'):
        resolve('scan', 'cpu', problem)
    assert not list((tmp_path / 'cache').iterdir())
    (tmp_path / 'well').touch()
    monkeypatch.setattr(cpu, '_COMPILE_SECONDS', 3600)
    assert resolve('scan', '', problem) is chunked  # not at every call
    monkeypatch.setattr(cpu.time, 'monotonic', lambda: math.inf)
    assert resolve('scan', '', problem) is resolve('scan', 'cpu', problem) is cpu


def test_missing_compiler_is_remembered(first_use, tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', str(tmp_path / 'none'))
    monkeypatch.setenv('VISIONSSM_CACHE', str(tmp_path / 'cache'))
    assert 'CXX names' in available_backends('cpu')['cpu']
    monkeypatch.delenv('CXX')
    assert 'CXX names' in available_backends('cpu')['cpu']


def test_ziglang_comes_after_the_systems_own_compiler(monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(cpu.importlib.util, 'find_spec', lambda name: name == 'ziglang')
    monkeypatch.setattr(cpu.shutil, 'which', lambda name: '/usr/bin/g++' if name == 'g++' else None)
    assert cpu.find_compiler() == ['/usr/bin/g++']
    monkeypatch.setattr(cpu.shutil, 'which', lambda name: None)
    assert cpu.find_compiler()[1:] == ['-m', 'ziglang', 'c++']
    monkeypatch.setattr(cpu.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(cpu.CompileError, match='pip install ziglang'):
        cpu.find_compiler()


def test_forward_allocates_its_output_alone():
    x = torch.randn(2, 400, 1, 64)
    args = (x[:, :, 0], x, -torch.ones(1, 64, 1), x[..., :1], x[..., :1])
    selective_scan(*args, backend='cpu')
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        selective_scan(*args, backend='cpu')
    allocated = sum(max(e.nbytes(), 0) for e in record.profiler.kineto_results.events() if e.name() == '[memory]')
    assert allocated <= 1.1 * x.numel() * 4


def test_report_says_why():
    report = available_backends('cpu')
    assert report['cpu'] == '' and report['torch'] == '' and 'cuda' in report['triton']
    assert 'float64' in available_backends('cpu', torch.float64)['cpu']
    assert list(report) == backend_names('scan')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('channels', [5, 128])
@pytest.mark.parametrize('orders', ['once', 'u of each direction', 'one direction', 'again'])
def test_gradients_in_half_precision_are_rounded_once(orders, channels, dtype):
    length, directions, generator = 19, 1 if orders == 'one direction' else 2, torch.Generator().manual_seed(0)
    wide = (2, length, directions, channels)
    u = torch.randn(wide if orders == 'u of each direction' else (2, length, channels), generator=generator).to(dtype)
    delta = torch.randn(wide, generator=generator).to(dtype)
    A = -torch.rand(directions, channels, 2, generator=generator)
    B, C = torch.randn(2, 2, length, directions, 2, generator=generator)
    order = torch.arange(length).repeat(directions, 1)
    if orders == 'again':  # the second direction adds to one row of du and ddelta twice, and never writes another
        order[1, 3] = 4
    halves, floats = [], []
    for found, tensors in ((halves, (u, delta)), (floats, (u.float(), delta.float()))):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = selective_scan(*leaves, A, B, C, order=order, delta_softplus=True, backend='cpu')
        found += torch.autograd.grad(out, leaves, torch.ones_like(out))
    for half, exact in zip(halves, floats, strict=True):
        torch.testing.assert_close(half, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
