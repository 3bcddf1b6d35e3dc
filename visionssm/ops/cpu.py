"""The scan on a CPU: `selective_scan.cpp`, compiled in the wheel (`prebuilt.py`), or here at first use and cached.

The library has a plain C interface, so no torch version matters. It runs on the OpenMP threads of torch itself where
that library can be found, and on its own threads otherwise; their number is `torch.get_num_threads()`.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import itertools
import logging
import math
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from . import chunked, prebuilt
from .dispatch import ScanProblem, Temporary
from .inputs import ScanInputs, check_positions, projected_steps

_SOURCES = ('selective_scan.cpp', 'neighborhood.cpp', 'depthwise.cpp')  # one after the other
_FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno', '-fPIC', '-shared', '-pthread')
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PATIENCE_SECONDS = 60  # after which waiting for the compiler is told, again and again
_COMPILE_SECONDS = 3600  # a loaded machine takes minutes; after this the compiler hangs
_AGAIN_SECONDS = 60  # at least, before a compiler that was interrupted is tried again
_SHELL_KILLED = (130, 137, 143)  # how a compiler's own driver says that a signal ended it
PROJECTS_STEPS = True  # forward takes steps of low rank and what to multiply them by
CHECKS_POSITIONS = True  # forward checks orders itself
KEEPS_STARTS = True  # the states before every chunk of steps, from the forward pass for the backward one
_UPDATES_PER_THREAD = 1 << 15  # fewer state updates take less time than waking another thread


_logger = logging.getLogger('visionssm.ops')


class CompileError(RuntimeError):
    """The C++ kernel can't be compiled or loaded on this machine: the message says why."""


class InterruptedCompileError(CompileError):
    """The compiler took too long or was killed, as by want of memory: later it may do better."""


_INTS = 'batch length steps dirs channels states scalar_decay softplus mode window dtype delta_dtype u_per_dir threads'
_INTS += ' groups chunk du_dtype ddelta_dtype rank'
_INPUTS = 'u delta z A B C D bias projection order param_order'
_STRIDES = 'u_b u_l u_k delta_b delta_l delta_k B_b B_l B_k C_b C_l C_k z_b z_l'
_OUTPUTS = 'out last_state starts gout gstate du ddelta dA dB dC dD dz dbias gomp_parallel'


def fields(*names: str) -> list[tuple[str, type]]:
    """Fields of a structure: names of integers, of pointers, of integers again and so on."""
    kinds = itertools.cycle((ctypes.c_int64, ctypes.c_void_p))
    return [(name, kind) for group, kind in zip(names, kinds, strict=False) for name in group.split()]


class Scan(ctypes.Structure):
    """`struct Scan` of the C++ source, field by field."""

    _fields_ = fields(_INTS, _INPUTS, _STRIDES, _OUTPUTS)


def cache_dir() -> Path:
    """Where compiled kernels live: `VISIONSSM_CACHE`, or the user's cache folder of this platform."""
    if os.environ.get('VISIONSSM_CACHE'):
        return Path(os.environ['VISIONSSM_CACHE'])
    if os.name == 'nt' and os.environ.get('LOCALAPPDATA'):
        return Path(os.environ['LOCALAPPDATA']) / 'visionssm'
    if os.environ.get('XDG_CACHE_HOME') and sys.platform != 'darwin':
        return Path(os.environ['XDG_CACHE_HOME']) / 'visionssm'
    try:
        home = Path.home()
    except RuntimeError:  # no HOME and no such user, as in some containers
        return _temporary_dir()
    folders = {'darwin': home / 'Library' / 'Caches', 'win32': home / 'AppData' / 'Local'}
    return folders.get(sys.platform, home / '.cache') / 'visionssm'


def _temporary_dir() -> Path:
    return Path(tempfile.gettempdir()) / f'visionssm-{_user()}'


def find_compiler() -> list[str]:
    """The command of the C++ compiler: `CXX`, the first found of c++, g++, clang++, or the package `ziglang`."""
    if os.environ.get('CXX'):
        found = shutil.which(os.environ['CXX'])
        if not found:
            raise CompileError(f'CXX names {os.environ["CXX"]!r}, which is not an executable on PATH')
        return [found]
    for name in ('c++', 'g++', 'clang++'):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec('ziglang'):
        return [sys.executable, '-m', 'ziglang', 'c++']
    raise CompileError(
        'no C++ compiler on PATH (looked for c++, g++, clang++; set CXX to name another, '
        'or install one: pip install ziglang)'
    )


def _cpu_identity() -> str:
    """What `-march=native` depends on, so that a cache on a shared disk is not used on another processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ('flags', 'Features', 'model name', 'CPU part')
    return '\n'.join(sorted({line for line in lines if line.startswith(wanted)}))


def compile_library(source: str) -> Path:
    """Compile C++ `source` to a shared library in the cache, or find it there; processes may do so at the same time.

    Raises:
        CompileError: If there is no compiler, it fails, or nowhere can be written.
    """
    compiler = find_compiler()
    try:
        asked = subprocess.run([*compiler, '--version'], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise InterruptedCompileError(f'{compiler[0]} --version took more than {error.timeout:g} s') from None
    version = asked.stdout
    identity = '\0'.join((source, *compiler, version, ' '.join(_FLAGS), _cpu_identity(), sys.platform))
    name = f'scan-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.{"dll" if os.name == "nt" else "so"}'
    failures = []
    for folder in dict.fromkeys((cache_dir(), _temporary_dir())):
        target = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_own(folder):
                raise PermissionError('it belongs to somebody else, or everybody may write to it')
            if _is_own(target):
                return target
            return _compile_into(target, compiler, source)
        except OSError as error:  # read-only or full: try the next folder
            failures.append(f'{folder}: {error}')
    raise CompileError('no folder to keep the compiled kernel in: ' + '; '.join(failures))


def _user() -> str:
    return str(os.getuid()) if hasattr(os, 'getuid') else os.environ.get('USERNAME', 'user')


def _is_own(path: Path) -> bool:
    """Whether `path` exists and only this user or root can change it: what lies there is code that we run."""
    try:
        status = path.stat()
    except OSError:
        return False
    return not hasattr(os, 'getuid') or (status.st_uid in (os.getuid(), 0) and not status.st_mode & stat.S_IWOTH)


def _compile_into(target: Path, compiler: list[str], source: str) -> Path:
    """Compile beside `target`, then rename: whoever looks at `target` sees all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='build-') as work:
        code, built = Path(work) / 'scan.cpp', Path(work) / target.name
        code.write_text(source)
        # Apple's and some ARM compilers know -mcpu=native but not -march=native
        for tuning in (['-march=native'], ['-mcpu=native'], []):
            status, errors = _run_patiently([*compiler, *_FLAGS, *tuning, '-o', str(built), str(code)])
            if status == 0:
                os.replace(built, target)
                return target
            if status < 0 or status in _SHELL_KILLED:
                raise InterruptedCompileError(f'{" ".join(compiler)} was killed; {errors.strip()[-2000:]}')
        raise CompileError(f'{" ".join(compiler)} failed:\n{errors.strip()[-2000:]}')


def _run_patiently(command: list[str]) -> tuple[int, str]:
    """Exit status and errors of the compiler; says every `_PATIENCE_SECONDS` that it is still being waited for."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            waited = 0
            while waited < _COMPILE_SECONDS:
                try:
                    _, errors = process.communicate(timeout=_PATIENCE_SECONDS)
                    return process.returncode, errors
                except subprocess.TimeoutExpired:
                    waited += _PATIENCE_SECONDS
                    _logger.warning('still compiling the C++ scan kernel, once, after %d s: %s', waited, command[0])
        finally:
            if process.poll() is None:
                process.kill()
    raise InterruptedCompileError(f'{command[0]} took more than {_COMPILE_SECONDS} s')


def source() -> str:
    """The C++ of the library."""
    return ''.join(Path(__file__).with_name(name).read_text() for name in _SOURCES)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled kernel: that of the wheel for this processor, or else compiled at the first call.

    Raises:
        CompileError: If it can't be compiled or loaded, or `VISIONSSM_LIBRARY` names none that runs here.
    """
    try:
        path = prebuilt.find() or compile_library(source())
        lib = ctypes.CDLL(str(path))
    except ValueError as error:
        raise CompileError(str(error)) from error
    except OSError as error:
        raise CompileError(f'{path} cannot be loaded: {error}') from error
    bind(lib, Scan, 'scan_size', 'scan_check', 'scan_forward', 'scan_backward', 'scan_writes_once')
    return lib


def origin() -> str:
    """Which library runs: `prebuilt NAME` or `compiled here: PATH`. Compiles it at the first call.

    Raises:
        CompileError: If none does.
    """
    path = Path(library()._name)
    return f'prebuilt {path.stem}' if path.parent == prebuilt.FOLDER else f'compiled here: {path}'


def bind(lib: ctypes.CDLL, structure: type[ctypes.Structure], size: str, *functions: str) -> None:
    """Say that `functions` of the library take a `structure`.

    Raises:
        CompileError: If the library has another layout of it, by its function `size`.
    """
    try:
        found, ask = [getattr(lib, f'visionssm_{name}') for name in functions], getattr(lib, f'visionssm_{size}')
    except AttributeError as error:
        raise CompileError(f'{lib._name} is of another version: {error}') from error
    for function in found:
        function.argtypes, function.restype = [ctypes.POINTER(structure)], ctypes.c_int
    ask.restype = ctypes.c_int64
    if ask() != ctypes.sizeof(structure):
        raise CompileError(f'{lib._name} has another struct layout than this Python: {ask()} bytes')


@lru_cache(maxsize=1)
def gomp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP library that torch has loaded, so that one pool of threads serves both."""
    for path in sorted(Path(torch.__file__).parent.joinpath('lib').glob('libgomp*.so*')):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


_failed: tuple[float, str] = (0.0, '')  # until when it is not tried again, and why


def _failure() -> str:
    """Why there is no library; '' if there is. What may pass is tried again, after as long as the last try took."""
    global _failed
    start = time.monotonic()
    if start < _failed[0]:
        return _failed[1]
    try:
        library()
    except InterruptedCompileError as error:
        end = time.monotonic()
        _failed = end + max(end - start, _AGAIN_SECONDS), Temporary(error)
    except CompileError as error:
        _failed = math.inf, str(error)
    else:
        _failed = 0.0, ''
    return _failed[1]


def refuse(problem: ScanProblem) -> str:
    """Why this backend can't serve `problem`; '' if it can. Compiles the kernel at the first call."""
    if problem.dtype not in DTYPES:
        return f'it computes in fp32 and takes fp32, bf16 and fp16, not {problem.dtype}'
    if failure := _failure():
        return failure
    if problem.dtype == torch.float16 and not library().visionssm_has_fp16():
        return "this machine's compiler has no 16-bit float"
    return ''


def _rows(x: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """`x` in one of `dtypes` (fp32 otherwise) with neighbouring channels side by side; any other stride will do."""
    x = x if x.dtype in dtypes else x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _order(name: str, inputs: ScanInputs) -> Tensor | None:
    order = getattr(inputs, name)
    if order is None:
        return None
    if order.dtype != torch.int32:  # the cast to it would truncate
        check_positions(name, order, inputs.u.shape[1])
    return order.to(torch.int32).contiguous()


def _params(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


_NOT_FINITE, _STRAYS = 1, 2  # of visionssm_scan_check


class _Call:
    """A filled `struct Scan` and the tensors that it points to, which must outlive the call.

    Args:
        inputs: The scan.
        projection: What the last axis of `delta`, (B, L, K, R), is multiplied by: (K, D, R), all of it fp32; None: it
            is (B, L, K, D).

    Raises:
        ValueError: If an order visits what is not there.
    """

    def __init__(self, inputs: ScanInputs, projection: Tensor | None = None) -> None:
        dtype, A = inputs.u.dtype, _params(inputs.A)
        u, delta = _rows(inputs.u, (dtype,)), _rows(inputs.delta, (torch.float32, dtype))
        B, C = _rows(inputs.B, (torch.float32,)), _rows(inputs.C, (torch.float32,))
        z = None if inputs.z is None else _rows(inputs.z.to(dtype), (dtype,))
        D, bias, projection = _params(inputs.D), _params(inputs.delta_bias), _params(projection)
        order, param_order = _order('order', inputs), _order('param_order', inputs)
        (batch, length, directions), channels = delta.shape[:3], u.shape[-1]
        steps, states = inputs.steps, B.shape[-1]
        threads = batch * steps * directions * channels * states // _UPDATES_PER_THREAD
        self.keep: list[Tensor | None] = [u, delta, z, A, B, C, D, bias, projection, order, param_order]
        self.scan = Scan(
            batch, length, steps, directions, channels, states, A.shape[-1] == 1 and states > 1, inputs.delta_softplus,
            inputs.mode, inputs.local_window, DTYPES[dtype], DTYPES[delta.dtype], u.ndim == 4,
            max(1, min(torch.get_num_threads(), threads)), 0, inputs.chunk, 0, 0,
            0 if projection is None else projection.shape[-1],
            *[None if x is None else x.data_ptr() for x in self.keep],
            u.stride(0), u.stride(1), u.stride(2) if u.ndim == 4 else 0,
            *delta.stride()[:3], *B.stride()[:3], *C.stride()[:3], *((0, 0) if z is None else z.stride()[:2]),
            gomp_parallel=gomp_parallel(),
        )  # fmt: skip
        found = library().visionssm_scan_check(ctypes.byref(self.scan))
        if found & _STRAYS:
            check_positions('order', inputs.order, length)
            check_positions('param_order', inputs.param_order, length)
        self.has_infinite_rates = bool(found & _NOT_FINITE)

    def steers_beyond(self, inputs: ScanInputs) -> bool:
        """Whether decays are not finite: the exponential of the kernel is for finite ones, and for softplus's steps."""
        if self.has_infinite_rates or inputs.delta_softplus:
            return self.has_infinite_rates
        return not inputs.delta.sum(dtype=torch.float32).isfinite()

    def point(self, name: str, x: Tensor | None) -> Tensor | None:
        if x is not None:
            self.keep.append(x)
            setattr(self.scan, name, x.data_ptr())
        return x

    def run(self, function) -> None:
        if function(ctypes.byref(self.scan)):
            raise MemoryError('the scan kernel could not get its working memory')


def _with_exact_gate(inputs: ScanInputs) -> ScanInputs:
    """Tokens in fp32 where the gate has another dtype: the kernel reads both in one."""
    same = inputs.z is None or inputs.z.dtype == inputs.u.dtype
    return inputs if same else inputs._replace(u=inputs.u.float())


def forward(inputs: ScanInputs, projection: Tensor | None = None) -> tuple[Tensor, ...]:
    """Output in the dtype of `u`, the last state, and the states before every chunk unless a decay is not finite.

    `projection` is that of `_Call`, with softplus.
    """
    given, inputs = inputs, _with_exact_gate(inputs)
    call = _Call(inputs, projection)
    if call.steers_beyond(inputs):
        if projection is not None:
            given = given._replace(delta=projected_steps(given.delta, projection))
        return chunked.forward(given)
    out = call.point('out', inputs.u.new_empty(inputs.out_shape))
    state = inputs.u.new_empty(inputs.state_shape, dtype=torch.float32)
    if inputs.return_last_state:
        call.point('last_state', state)
    starts = inputs.u.new_empty(inputs.starts_shape, dtype=torch.float32)
    if inputs.keep_starts:
        call.point('starts', starts)
    call.run(library().visionssm_scan_forward)
    return out.to(given.u.dtype), state, starts


def backward(
    grads: tuple[Tensor, Tensor | None], inputs: ScanInputs, starts: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs.tensors`, each in its dtype, from those of output and last state.

    `starts` are the states before every chunk, from `forward`; without them it runs again.
    """
    given, inputs = inputs, _with_exact_gate(inputs)
    call = _Call(inputs)
    if starts is None:
        if call.steers_beyond(inputs):
            return chunked.backward(grads, given)
        starts = forward(inputs._replace(keep_starts=True))[2]
    u, delta, A, B, C, D, z, delta_bias = inputs.tensors
    grad_out, grad_state = grads
    batch, _, directions, channels = delta.shape
    call.point('starts', starts)
    call.point('gout', grad_out.to(u.dtype).contiguous())
    if grad_state is not None:
        call.point('gstate', grad_state.float().contiguous())
    # images go to threads; if there are fewer images than threads, so do groups of channel blocks, each with its dB, dC
    blocks = -(-channels // library().visionssm_vector_width())
    groups = call.scan.groups = max(1, min(blocks, -(-call.scan.threads // max(batch, 1))))

    def new(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return call.point(name, torch.empty(shape, dtype=dtype))

    # what several steps add to is fp32; what is written once may be rounded at once
    once = 0 if u.dtype == torch.float32 else library().visionssm_scan_writes_once(ctypes.byref(call.scan))
    du_dtype = u.dtype if once & 1 else torch.float32
    ddelta_dtype = u.dtype if once & 2 and delta.dtype == u.dtype else torch.float32
    call.scan.du_dtype, call.scan.ddelta_dtype = DTYPES[du_dtype], DTYPES[ddelta_dtype]
    du, ddelta = new('du', *u.shape, dtype=du_dtype), new('ddelta', *delta.shape, dtype=ddelta_dtype)
    dA = new('dA', batch, *A.shape)
    dB, dC = (new(name, groups, *B.shape) for name in ('dB', 'dC'))
    dD = None if D is None else new('dD', batch, directions, channels)
    dz = None if z is None else new('dz', *z.shape)
    dbias = None if delta_bias is None else new('dbias', batch, directions, channels)
    call.run(library().visionssm_scan_backward)
    dB, dC = (x[0] if groups == 1 else x.sum(0) for x in (dB, dC))
    dA, dD, dbias = (None if x is None else x.sum(0) for x in (dA, dD, dbias))
    if not dA.sum().isfinite():  # the kernel says infinite where the definition has no value
        return chunked.backward(grads, given)
    return given.like_inputs((du, ddelta, dA, dB, dC, dD, dz, dbias))
