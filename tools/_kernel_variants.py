"""Every kernel launch of the zoo's scans, found by running the launchers on meta tensors, and compiled with no GPU."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from visionssm_kernels import selective_scan as scan

from visionssm.ops.inputs import ScanInputs

TARGETS = {
    'sm_80': GPUTarget('cuda', 80, 32),
    'sm_90': GPUTarget('cuda', 90, 32),
    'sm_100': GPUTarget('cuda', 100, 32),
    'sm_120': GPUTarget('cuda', 120, 32),
    'gfx942': GPUTarget('hip', 'gfx942', 64),
}
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
_POINTERS = {
    torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16', torch.int32: '*i32', torch.int64: '*i64',
}  # fmt: skip


class Problem(NamedTuple):
    """One scan as a model calls it."""

    batch: int
    length: int
    directions: int
    channels: int
    d_state: int
    scalar_a: bool = False
    gate: bool = False
    shared_u: bool = True
    skip: bool = True
    mode: int = scan.MERGED
    window: int = 0
    steps: int = 0  # of an order table; 0: as many as tokens; -1: no table
    param_order: bool = False


PROBLEMS = {
    'vmamba': Problem(128, 784, 4, 384, 1),
    'vmamba_d96': Problem(128, 3136, 4, 96, 1),
    'vmamba_few': Problem(1, 16384, 4, 192, 1),
    'vmamba_vanilla': Problem(128, 784, 4, 384, 16),
    'vmamba_m2': Problem(128, 784, 4, 192, 64, scalar_a=True),
    'vim': Problem(128, 197, 2, 384, 16, gate=True, shared_u=False),
    'vim_1248': Problem(1, 6085, 2, 384, 16, gate=True, shared_u=False),
    'plainmamba': Problem(128, 196, 4, 384, 16, param_order=True),
    'lbvim_w4': Problem(128, 49, 1, 768, 16, gate=True, window=4, steps=-1),
    'lbvim_w8': Problem(128, 196, 1, 768, 16, gate=True, window=8, steps=-1),
    'lbvim_w16': Problem(128, 784, 1, 768, 16, gate=True, window=16, steps=-1),
    'msvmamba_half': Problem(128, 784, 1, 192, 1, mode=scan.PER_STEP, steps=2352),
    'msvmamba_full': Problem(128, 3136, 1, 192, 1, mode=scan.PER_STEP),
    'groupmamba': Problem(128, 784, 1, 192, 1),
    'a2mamba': Problem(128, 784, 1, 128, 1, skip=False, steps=-1),
    'per_direction': Problem(128, 784, 4, 384, 16, mode=scan.PER_DIRECTION),
}


class Launch(NamedTuple):
    """One kernel launch: name, argument types, compile-time constants, grid; steps per saved state (0: saves none)."""

    kernel: str
    signature: dict[str, str]
    constants: dict[str, object]
    aligned: tuple[str, ...]
    options: dict[str, int]
    programs: int
    segment: int

    @property
    def key(self) -> str:
        """Hash of everything that the compiled code depends on, but not the code itself."""
        constants = {name: str(value) for name, value in self.constants.items()}
        text = json.dumps([self.kernel, self.signature, constants, self.aligned, self.options])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Recorder:
    def __init__(self, kernel, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def record(*args, num_warps=4, num_stages=3, **kwargs):
            names = list(inspect.signature(self.kernel.fn).parameters)
            values = dict(zip(names, args, strict=False)) | kwargs
            constexpr = {p.name for p in self.kernel.params if p.is_constexpr}
            signature, constants, aligned = {}, {}, []
            for name in names:
                value = values[name]
                # what Triton's launcher does: 1 and None are compiled in, multiples of 16 are told to the compiler
                if name in constexpr or value is None or (isinstance(value, int) and value == 1):
                    signature[name], constants[name] = 'constexpr', value
                elif isinstance(value, torch.Tensor):
                    signature[name] = _POINTERS[value.dtype]
                    if value.storage_offset() * value.element_size() % 16 == 0:
                        aligned.append(name)
                else:
                    signature[name] = 'i32' if -(2**31) <= value < 2**31 else 'i64'
                    if value % 16 == 0:
                        aligned.append(name)
            options = {'num_warps': num_warps, 'num_stages': num_stages}
            name = self.kernel.fn.__name__
            self.launches.append(
                Launch(name, signature, constants, tuple(aligned), options, grid[0], values.get('segment', 0))
            )

        return record


_KERNELS = [name for name in vars(scan) if name.endswith('_kernel')]


def launches(problem: Problem, dtype: torch.dtype, backward: bool, deterministic: bool = False) -> list[Launch]:
    """The launches of one forward or backward pass."""
    batch, length, directions, channels, d_state = problem[:5]

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device='meta')

    u = empty(batch, length, channels) if problem.shared_u else empty(batch, length, directions, channels)
    delta = empty(batch, length, directions, channels)
    rank = max(channels // 32, 1)
    projected = empty(batch, length, directions, rank + 2 * d_state)  # dt, B and C come from one projection
    b, c = projected[..., rank:].split(d_state, -1)
    rates = empty(directions, channels, 1 if problem.scalar_a else d_state, dtype=torch.float32)
    skip = empty(directions, channels, dtype=torch.float32) if problem.skip else None
    bias = empty(directions, channels, dtype=torch.float32)
    z = empty(batch, length, 2 * channels)[..., channels:] if problem.gate else None
    steps = problem.steps or length
    order = None if steps < 0 else empty(directions, steps, dtype=torch.int32)
    param_order = empty(directions, steps, dtype=torch.int32) if problem.param_order else None
    values = (u, delta, rates, b, c, skip, z, bias, order, param_order, True, problem.mode, problem.window, False)
    inputs = ScanInputs(*values)
    rows = length if problem.mode != scan.PER_STEP or steps < 0 else steps
    grad = empty(batch, rows, channels) if problem.mode == scan.MERGED else empty(batch, rows, directions, channels)
    found: list[Launch] = []
    recorders = {name: _Recorder(getattr(scan, name), found) for name in _KERNELS}
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with mock.patch.multiple(scan, **recorders):
            if backward:
                scan.backward((grad, None), inputs)
            else:
                scan.forward(inputs)
    finally:
        torch.use_deterministic_algorithms(was)
    return found


def compile_launch(launch: Launch, target: GPUTarget):
    """The compiled kernel, as Triton's compiler returns it."""
    kernel = getattr(scan, launch.kernel)
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=launch.signature,
        constexprs={(index[name],): value for name, value in launch.constants.items()},
        attrs={(index[name],): [['tt.divisibility', 16]] for name in launch.aligned},
    )
    return triton.compile(source, target=target, options=launch.options)


def _nvidia_tool(name: str) -> str:
    return str(Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / name)


def resources(compiled) -> dict[str, int]:
    """Registers per thread, bytes spilled per thread and bytes of shared memory."""
    if 'amdgcn' in compiled.asm:
        text = compiled.asm['amdgcn']
        found = {key: int(re.search(rf'\.{key}:\s+(\d+)', text)[1]) for key in ('vgpr_count', 'vgpr_spill_count')}
        spilled = 4 * found['vgpr_spill_count']
        return {'registers': found['vgpr_count'], 'spilled': spilled, 'shared': compiled.metadata.shared}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'kernel.cubin')
        path.write_bytes(compiled.asm['cubin'])
        command = [_nvidia_tool('cuobjdump'), '--dump-resource-usage', str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r'(REG|STACK|SHARED):(\d+)', text)}
    shared = max(found['SHARED'], compiled.metadata.shared)
    return {'registers': found['REG'], 'spilled': found['STACK'], 'shared': shared}


def sass(compiled) -> str:
    """The disassembly of a CUDA kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'kernel.cubin')
        path.write_bytes(compiled.asm['cubin'])
        command = [_nvidia_tool('nvdisasm'), '-c', str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def require_compiler() -> None:
    """Raise if this process interprets kernels, or was told to before triton was imported."""
    if os.environ.get('TRITON_INTERPRET') == '1':
        raise RuntimeError('TRITON_INTERPRET=1: kernels are interpreted in this process; run without it to compile')
