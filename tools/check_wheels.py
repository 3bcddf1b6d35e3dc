"""Check the libraries inside wheels: those of this processor, of arm64 under QEMU, of Windows under Wine.

    pip install -e ".[wheels]"; apt install qemu-user libc6-arm64-cross wine
    python tools/check_wheels.py dist/*.whl --output results/wheels.json

Each runs all cases of `visionssm selfcheck` in every dtype, outputs and gradients, and is compared with the library
that is compiled here; so is neighbourhood attention. Where there is no emulator (macOS) the file is inspected: format,
processor, oldest system, exports, and what it needs from elsewhere.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import lief
import torch
from build_wheels import PLATFORMS, zig

from visionssm.apps.selfcheck import CASES, check, run_case
from visionssm.ops import attention_cpu, convolution_cpu, cpu, prebuilt, scan_projected, selective_scan, use_backend
from visionssm.testing import relative_error, tolerance

HOST = Path(__file__).with_name('_library_host.cpp')
EMULATORS = {  # what runs a program of the platform here
    'linux-x86-64': [],
    'linux-arm64': ['qemu-aarch64', '-cpu', 'max', '-L', '/usr/aarch64-linux-gnu'],
    'windows-x86-64': ['wine'],
}
ATTENTIONS = (((9, 10), 16, 3, (1, 1)), ((14, 13), 24, 7, (1, 1)), ((15, 16), 7, 5, (3, 2)))


class RemoteFunction:
    """Stands for a function of a library in another process; `cpu.bind` may say its types."""

    def __init__(self, library: RemoteLibrary, name: str) -> None:
        self.library, self.name = library, name

    def __call__(self, reference: Any = None) -> int:
        """Send the struct and every tensor that it points to, and take the tensors back."""
        call = None if reference is None else reference._obj
        storages, pointers = {}, []
        for name, kind in () if call is None else call._fields_:
            address = getattr(call, name) if kind is ctypes.c_void_p else None
            if address and name != 'gomp_parallel':
                start, size = self.library.storages[address]
                index = list(storages).index(start) if start in storages else len(storages)
                storages[start] = size
                pointers.append((getattr(type(call), name).offset, index, address - start))
        message = [struct.pack('<64sq', self.name.encode(), len(storages))]
        for start, size in storages.items():
            message += [struct.pack('<q', size), ctypes.string_at(start, size)]
        if call is not None:
            call.gomp_parallel = None
        data = b'' if call is None else bytes(call)
        message += [struct.pack('<q', len(data)), data, struct.pack('<q', len(pointers))]
        message += [struct.pack('<3q', *pointer) for pointer in pointers]
        self.library.process.stdin.write(b''.join(message))
        self.library.process.stdin.flush()
        (result,) = struct.unpack('<q', self.library.read(8))
        for start, size in storages.items():
            ctypes.memmove(start, self.library.read(size), size)
        return result & 0xFFFFFFFF


class RemoteLibrary:
    """A library in another process, perhaps of another processor, in the place of `cpu.library()`."""

    def __init__(self, command: list[str], library: Path) -> None:
        self._name = str(library)
        self.storages: dict[int, tuple[int, int]] = {}
        self.process = subprocess.Popen(
            [*command, f'./{library.name}'], cwd=library.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __getattr__(self, name: str) -> RemoteFunction:
        function = RemoteFunction(self, name)
        setattr(self, name, function)
        return function

    def read(self, size: int) -> bytes:
        """Bytes of the answer.

        Raises:
            RuntimeError: If the process is gone.
        """
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise RuntimeError(f'the process of {self._name} ended with {self.process.wait()}')
        return data

    def __enter__(self) -> RemoteLibrary:
        data_ptr = torch.Tensor.data_ptr

        def noted(tensor: torch.Tensor) -> int:
            storage = tensor.untyped_storage()
            self.storages[data_ptr(tensor)] = storage.data_ptr(), storage.nbytes()
            return data_ptr(tensor)

        self.patches = [
            mock.patch.object(torch.Tensor, 'data_ptr', noted),
            mock.patch.object(cpu, 'library', lambda: self),
            mock.patch.object(attention_cpu, '_library', lambda: self),
            mock.patch.object(convolution_cpu, '_library', lambda: self),
        ]
        for patch in self.patches:
            patch.start()
        cpu.bind(self, cpu.Scan, 'scan_size', 'scan_check', 'scan_forward', 'scan_backward', 'scan_writes_once')
        cpu.bind(self, attention_cpu.Attention, 'attention_size', 'na_qk', 'na_av', 'na_av_transposed')
        cpu.bind(self, convolution_cpu.Depthwise, 'depthwise_size', 'depthwise')
        cpu.bind(self, convolution_cpu.Activation, 'activation_size', 'activation')
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self.patches:
            patch.stop()
        self.process.stdin.close()
        self.process.wait()


def outcomes() -> dict[str, torch.Tensor]:
    """All that the library computes in fp32: scans and their gradients, attention, convolutions."""
    found = {}
    with use_backend('scan=cpu'):
        for case in CASES:
            out, grads = run_case(case, torch.float32, torch.device('cpu'), selective_scan)
            found |= {f'{case.name}: {name}': x for name, x in {'output': out, **grads}.items()}
        generator = torch.Generator().manual_seed(0)
        dt, A, dt_proj = (torch.rand(shape, generator=generator) for shape in ((2, 9, 2, 3), (2, 100, 1), (2, 100, 3)))
        u, B = (torch.randn(shape, generator=generator) for shape in ((2, 9, 100), (2, 9, 2, 1)))
        found['steps of low rank'] = scan_projected(u, dt, dt_proj, -A, B, B)
    for grid, channels, window, dilation in ATTENTIONS:
        generator = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(3, 2, 2, *grid, channels, generator=generator)
        attn = torch.randn(2, 2, *grid, window * window, generator=generator)
        for function, tensors in (('na_qk', (q, k)), ('na_av', (attn, v)), ('na_av_transposed', (attn, v))):
            name = f'{function}, {channels} channels, window {window}, dilation {dilation}'
            found[name] = getattr(attention_cpu, function)(*tensors, window, dilation)
        table = torch.randn(2, 2 * window - 1, 2 * window - 1, generator=generator)
        found[f'na_weights, {channels} channels, window {window}, dilation {dilation}'] = attention_cpu.na_weights(
            q, k, table, dilation
        )
    for kernel, padding in (((3, 3), (1, 1)), ((7, 7), (3, 3)), ((1, 4), (0, 3))):
        for activation in convolution_cpu.ACTIVATIONS:
            generator = torch.Generator().manual_seed(0)
            tensors = [torch.randn(shape, generator=generator) for shape in ((2, 5, 9, 40), (40, 1, *kernel), (40,))]
            for other in (False, True):
                name = f'depthwise convolution, {kernel}, {activation}, {other}'
                found[name] = convolution_cpu.depthwise(*tensors, activation, padding, (1, 1), other, other)
    for activation in convolution_cpu.ACTIVATIONS:
        generator = torch.Generator().manual_seed(0)
        x, bias = (torch.randn(shape, generator=generator) for shape in ((9, 117), (117,)))
        convolution_cpu.activate(x, bias, activation)
        found[f'activation, {activation}'] = x
    return found


def inspect(library: Path) -> dict[str, Any]:
    """What the file says of itself."""
    binary = lief.parse(str(library))
    exported = sorted(name.lstrip('_') for name in (str(getattr(f, 'name', f)) for f in binary.exported_functions))
    facts = {'kB': round(library.stat().st_size / 1e3), 'format': binary.format.name, 'exports': exported}
    if isinstance(binary, lief.ELF.Binary):
        versions = {
            str(v.name) for needed in binary.symbols_version_requirement for v in needed.get_auxiliary_symbols()
        }
        numbers = [tuple(map(int, v.removeprefix('GLIBC_').split('.'))) for v in versions if v.startswith('GLIBC_')]
        facts |= {'processor': binary.header.machine_type.name, 'glibc': '.'.join(map(str, max(numbers)))}
    elif isinstance(binary, lief.MachO.Binary):
        facts |= {
            'processor': binary.header.cpu_type.name,
            'oldest system': '.'.join(map(str, binary.build_version.minos[:2])),
            'signed': binary.has_code_signature,
        }
    else:
        facts |= {'processor': binary.header.machine.name}
    names = (str(getattr(x, 'name', x)) for x in binary.libraries)
    return facts | {'needs': sorted(names)}


def run(command: list[str], library: Path, expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Run everything in the library, and compare."""
    with RemoteLibrary(command, library) as remote:
        rows = list(check(torch.device('cpu'), ['cpu']))
        found = outcomes()
        width = remote.visionssm_vector_width()
    difference, where = max((relative_error(found[name], x), name) for name, x in expected.items())
    return {
        'vector_width': width,
        'selfcheck': {
            str(row.dtype).removeprefix('torch.'): {
                'cases': row.cases, 'output': row.output[0], 'gradient': row.grad[0], 'passed': row.passed
            }
            for row in rows
        },
        'difference_from_compiled_here': difference,
        'of': where,
        'passed': all(row.passed for row in rows) and difference <= tolerance(torch.float32, grad=True),
    }  # fmt: skip


def main() -> int:
    """Check the wheels of the command line; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('wheels', nargs='+', type=Path)
    parser.add_argument('--output', type=Path, help='JSON file')
    args = parser.parse_args()
    wanted = {'visionssm_has_fp16', 'visionssm_vector_width', 'visionssm_scan_size', 'visionssm_attention_size'}
    scans = 'scan_check', 'scan_forward', 'scan_backward', 'scan_writes_once'
    others = 'na_qk', 'na_av', 'na_av_transposed', 'depthwise', 'depthwise_size', 'activation', 'activation_size'
    wanted |= {f'visionssm_{name}' for name in (*scans, *others)}
    torch.set_num_threads(2)
    expected, results = outcomes(), []
    assert cpu.origin().startswith('compiled here')
    for wheel in args.wheels:
        name = next((n for n, p in PLATFORMS.items() if wheel.stem.endswith(p.tag)), None)
        if name is None:  # the pure wheel
            continue
        with tempfile.TemporaryDirectory() as folder:
            paths = [n for n in zipfile.ZipFile(wheel).namelist() if f'/{prebuilt.FOLDER.name}/' in n]
            libraries = [Path(zipfile.ZipFile(wheel).extract(path, folder)) for path in paths]
            command = EMULATORS.get(name)
            if command is not None and (not command or shutil.which(command[0])):
                zig('-target', PLATFORMS[name].target, '-O2', '-g0', '-o', f'{folder}/host.exe', HOST)
                command = [*command, f'{folder}/host.exe']
            else:
                command = None
            for library in libraries:
                row = {'wheel': wheel.name, 'wheel_MB': round(wheel.stat().st_size / 1e6, 2), 'library': library.stem}
                row |= inspect(library)
                row['passed'] = wanted <= set(row['exports'])
                if command and (
                    command[0] != f'{folder}/host.exe' or prebuilt.NEEDS[library.stem] <= prebuilt.features()
                ):
                    facts = run(command, library, expected)
                    row |= {'run_by': Path(command[0]).name if len(command) > 1 else 'this processor', **facts}
                    row['passed'] = facts['passed'] and wanted <= set(row['exports'])
                results.append(row)
                ran = (
                    f'{row["run_by"]}, {row["difference_from_compiled_here"]:.1e} apart'
                    if 'run_by' in row
                    else 'inspected'
                )
                print(f'{name} {library.stem}: {ran}: {"ok" if row["passed"] else "FAILED"}', flush=True)
    if args.output:
        machine = {'cpu': platform.processor() or platform.machine(), 'torch': torch.__version__}
        command = 'python tools/check_wheels.py dist/*.whl --output results/wheels.json'
        args.output.write_text(
            json.dumps({'command': command, 'machine': machine, 'libraries': results}, indent=1) + '\n'
        )
    return 0 if all(row['passed'] for row in results) else 1


if __name__ == '__main__':
    sys.exit(main())
