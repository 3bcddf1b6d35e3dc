"""Wheels with the C++ kernel inside, for every platform, from one Linux machine: no compiler where they are installed.

    pip install -e ".[wheels]"
    python tools/build_wheels.py --output dist

Cross-compiles `visionssm/ops/*.cpp` with zig, once per level of processor, and puts the libraries into copies of the
pure wheel, which stays as it is; `visionssm/ops/prebuilt.py` chooses among them. Every compilation also checks that the
structs of the source lie as Python's ctypes lays them out.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from visionssm.ops import attention_cpu, convolution_cpu, cpu, prebuilt

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ('-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno', '-g0', '-fvisibility=hidden')
LEVELS = {  # zig's name of the processor for each library
    'x86-64-v4': 'x86_64_v4',
    'x86-64-v3': 'x86_64_v3',
    'x86-64-v2': 'x86_64_v2',
    'arm64-bf16': 'generic+bf16',
    'arm64-neon': 'generic',
}


@dataclass(frozen=True)
class Platform:
    """A platform that gets a wheel of its own.

    Attributes:
        target: As zig calls it, with the oldest system that the libraries run on.
        tag: As pip calls it.
        suffix: Of a shared library.
        processor: What the names of its libraries in `LEVELS` begin with.
    """

    target: str
    tag: str
    suffix: str
    processor: str

    @property
    def levels(self) -> list[str]:
        """Names of its libraries, the best first."""
        return [name for name in prebuilt.NEEDS if name.startswith(self.processor)]


PLATFORMS = {
    'linux-x86-64': Platform(
        'x86_64-linux-gnu.2.17', 'manylinux_2_17_x86_64.manylinux2014_x86_64', '.so', 'x86-64'
    ),
    'linux-arm64': Platform(
        'aarch64-linux-gnu.2.17', 'manylinux_2_17_aarch64.manylinux2014_aarch64', '.so', 'arm64'
    ),
    'macos-arm64': Platform('aarch64-macos.11.0', 'macosx_11_0_arm64', '.dylib', 'arm64'),
    'macos-x86-64': Platform('x86_64-macos.11.0', 'macosx_11_0_x86_64', '.dylib', 'x86-64'),
    'windows-x86-64': Platform('x86_64-windows-gnu', 'win_amd64', '.dll', 'x86-64'),
}  # fmt: skip


def layout_checks() -> str:
    """C++ that compiles only where the structs are laid out as their ctypes twins."""
    lines = ['#include <cstddef>']
    for structure in (cpu.Scan, attention_cpu.Attention, convolution_cpu.Depthwise):
        name = structure.__name__
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(structure)}, "size of {name}");')
        for field, *_ in structure._fields_:
            offset = getattr(structure, field).offset
            lines.append(f'static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");')
    return '\n'.join(lines) + '\n'


def run(command: list[str]) -> None:
    """Run `command`.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed:\n{done.stdout.strip()[-4000:]}')


def zig(*arguments: object) -> None:
    """Run zig's C++ compiler."""
    run([sys.executable, '-m', 'ziglang', 'c++', *map(str, arguments)])


def build_library(platform: Platform, level: str, folder: Path) -> Path:
    """Compile the library of `level` into `folder`."""
    code, built, library = folder / f'{level}.cpp', folder / f'{level}.o', folder / f'{level}{platform.suffix}'
    code.write_text(cpu.source() + layout_checks())
    pic = () if platform.suffix == '.dll' else ('-fPIC',)
    zig('-target', platform.target, f'-mcpu={LEVELS[level]}', *FLAGS, *pic, '-c', '-o', built, code)
    # linked for any processor of the kind: one C++ library of zig's per platform, compiled once
    # a dylib names itself: not after a folder of this machine
    name = (f'-Wl,-install_name,@rpath/{library.name}',) if platform.suffix == '.dylib' else ()
    zig('-target', platform.target, '-shared', '-s', *name, '-o', library, built)
    return library


def write_wheel(pure: Path, tag: str, libraries: list[Path], output: Path) -> Path:
    """A copy of the wheel `pure` for the platforms of `tag`, with `libraries` inside."""
    from wheel.wheelfile import WheelFile

    stem = pure.name.removesuffix('-none-any.whl')
    if stem == pure.name:
        raise ValueError(f'{pure.name} is not a pure wheel: its name should end in -none-any.whl')
    target = output / f'{stem}-none-{tag}.whl'
    old = 'Root-Is-Purelib: true\nTag: py3-none-any\n'
    new = 'Root-Is-Purelib: false\n' + ''.join(f'Tag: py3-none-{one}\n' for one in tag.split('.'))
    with tempfile.TemporaryDirectory(dir=output) as folder:
        # under its final name, which WheelFile reads; it writes RECORD
        with zipfile.ZipFile(pure) as source, WheelFile(Path(folder, target.name), 'w', zipfile.ZIP_DEFLATED) as wheel:
            for info in source.infolist():
                data = source.read(info)
                if info.filename.endswith('.dist-info/RECORD'):
                    continue
                if info.filename.endswith('.dist-info/WHEEL'):
                    text = data.decode()
                    if old not in text:
                        raise ValueError(f'{pure.name} has an unexpected WHEEL file: {text!r}')
                    data = text.replace(old, new).encode()
                wheel.writestr(info, data)
            for library in libraries:
                wheel.write(library, f'visionssm/ops/{prebuilt.FOLDER.name}/{library.name}')
        Path(folder, target.name).replace(target)
    return target


def pure_wheel(folder: Path) -> Path:
    """The pure wheel of this tree."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        command = [sys.executable, '-m', 'build', '--wheel', '--outdir', fresh, str(ROOT)]
        run(command)
        built = next(Path(fresh).glob('*.whl'))
        return built.replace(folder / built.name)


def main() -> None:
    """Build the wheels that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--platform', nargs='+', choices=PLATFORMS, default=list(PLATFORMS), help='default: all')
    parser.add_argument('--level', nargs='+', choices=LEVELS, default=list(LEVELS), help='libraries; default: all')
    parser.add_argument('--pure', type=Path, help='the pure wheel, if it is built already')
    parser.add_argument('--output', type=Path, default=Path('dist'), help='folder; default: dist')
    parser.add_argument('--jobs', type=int, default=2, help='compilations at a time; default: 2')
    args = parser.parse_args()
    chosen = [(PLATFORMS[name], level) for name in args.platform for level in PLATFORMS[name].levels]
    chosen = [(platform, level) for platform, level in chosen if level in args.level]
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(args.jobs) as pool:
        pure = args.pure or pure_wheel(args.output)
        folders = {platform: Path(work, platform.tag) for platform, _ in chosen}
        for folder in folders.values():
            folder.mkdir()
        built = list(pool.map(lambda job: build_library(*job, folders[job[0]]), chosen))
        for platform, folder in folders.items():
            libraries = [library for library in built if library.parent == folder]
            wheel = write_wheel(pure, platform.tag, libraries, args.output)
            sizes = ', '.join(f'{library.stem} {library.stat().st_size / 1e3:.0f} kB' for library in libraries)
            print(f'{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB ({sizes})')


if __name__ == '__main__':
    main()
