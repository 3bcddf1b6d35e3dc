"""What this machine has: versions, devices, which scan backend serves which device, and why the others don't."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from visionssm.ops import available_backends
from visionssm.ops.cpu import CompileError, cache_dir, find_compiler, origin
from visionssm.ops.dispatch import BACKENDS, OPS, requested_backend
from visionssm.version import __version__

_PACKAGES = (
    'timm', 'triton', 'numpy', 'safetensors', 'huggingface-hub', 'pillow', 'scikit-learn',
    'matplotlib', 'tqdm', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation',
)  # fmt: skip
_VARIABLES = (
    'VISIONSSM_BACKEND',
    'VISIONSSM_NEIGHBORHOOD_BACKEND',
    'VISIONSSM_CACHE',
    'VISIONSSM_LIBRARY',
    'VISIONSSM_MAX_PARAMETERS',
    'CXX',
    'OMP_NUM_THREADS',
    'HF_HOME',
    'HF_HUB_OFFLINE',
    'HF_ENDPOINT',
)


def versions() -> list[tuple[str, str]]:
    """(name, version) of this package, Python, the platform and the packages that matter here."""
    rows = [
        ('visionssm', __version__),
        ('python', platform.python_version()),
        ('platform', platform.platform()),
        ('torch', torch.__version__),  # also says what it was built for
    ]
    for name in _PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, 'not installed'))
    return rows


def devices() -> list[tuple[str, str]]:
    """(device, description) of everything that torch can compute on here."""
    rows = [('cpu', f'{platform.processor() or platform.machine()}, torch threads: {torch.get_num_threads()}')]
    if torch.cuda.is_available():  # CUDA and ROCm
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            rows.append((f'cuda:{index}', f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB'))
    if torch.backends.mps.is_available():
        rows.append(('mps', 'Apple GPU'))
    if torch.xpu.is_available():
        rows += [(f'xpu:{i}', torch.xpu.get_device_name(i)) for i in range(torch.xpu.device_count())]
    return rows


def processor(device: torch.device) -> str:
    """What a device is called by its maker, as far as the system says."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type != 'cpu':
        return dict(devices()).get(str(device), device.type)
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    named = (line.split(':')[1].strip() for line in lines if 'model name' in line)
    return next(named, platform.processor() or platform.machine())


def check_device(name: str) -> torch.device:
    """The device `name`, if torch can compute on it here.

    Raises:
        ValueError: If it can't; the message lists those it can.
    """
    found = [device for device, _ in devices()]
    if name not in (*found, *(device.partition(':')[0] for device in found)):
        raise ValueError(f'device {name!r} is not available here; choose from {", ".join(found)}')
    return torch.device(name)


def backends() -> list[tuple[str, str, str, str]]:
    """(op, device type, backend, what it does there). Compiles the C++ kernel if that has not been done yet."""
    rows = []
    for op in OPS:
        for device in dict.fromkeys(name.partition(':')[0] for name, _ in devices()):
            asked, reasons = requested_backend(op), available_backends(device, op=op)
            automatic = [b.name for b in BACKENDS if b.op == op and b.is_automatic(device) and not reasons[b.name]]
            for name, reason in reasons.items():
                if reason:
                    text = f'no: {" ".join(reason.split())}'
                elif name == (asked or automatic[0]):
                    text = 'used, as asked for' if asked else 'used'
                else:
                    text = 'available' if name in automatic else 'only when asked for'
                rows.append((op, device, name, text))
    return rows


def tools() -> list[tuple[str, str]]:
    """(name, value) of the C++ kernel, compiler, cache folder and the environment variables that are read here.

    Compiles the C++ kernel if the wheel brought none and that has not been done yet.
    """
    try:
        command = find_compiler()
        output = subprocess.run([*command, '--version'], capture_output=True, text=True, timeout=60, check=False).stdout
        compiler = f'{" ".join(command)} ({(output.splitlines() or ["no version"])[0]})'
    except CompileError as error:
        compiler = f'none: {error}'
    try:
        kernel = origin()
    except CompileError as error:
        kernel = f'none: {" ".join(str(error).split())}'
    rows = [('C++ kernel', kernel), ('compiler', compiler), ('kernel cache', str(cache_dir()))]
    return rows + [(name, os.environ.get(name, 'not set')) for name in _VARIABLES]
