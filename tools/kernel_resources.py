"""Compile every kernel variant of the zoo for every target, with no GPU, and compare with `kernels/resources.json`.

    python tools/kernel_resources.py                      # check all; exit code 1 on a spill or on growth
    python tools/kernel_resources.py --dtypes fp16        # a part
    python tools/kernel_resources.py --update             # measure again and write the table

The table holds registers per thread, bytes spilled per thread and bytes of shared memory, by Triton version. A spill
fails; so do registers above the recorded ones by more than 10 %. A Triton version that is not in the table is checked
for spills only. Compiled code is cached by Triton itself, by the hash of the source.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import triton
from _kernel_variants import DTYPES, PROBLEMS, TARGETS, Launch, compile_launch, launches, require_compiler, resources

TABLE = Path(__file__).resolve().parent.parent / 'kernels' / 'resources.json'
FIELDS = ('registers', 'spilled', 'shared')
GROWTH = 1.1


def variants(problem: str, dtype: str) -> dict[str, Launch]:
    """The compiled kernels that one problem launches in one dtype, by a name that says where."""
    named: dict[str, Launch] = {}
    for direction in ('forward', 'backward'):
        for launch in launches(PROBLEMS[problem], DTYPES[dtype], direction == 'backward'):
            kernel = launch.kernel.removeprefix('selective_scan_').removesuffix('_kernel')
            if launch.constants.get('ADJOINT'):
                kernel += '_adjoint'
            named[f'{problem}.{dtype}.{direction}.{kernel}'] = launch
    return named


def pipelines_updates(compiled) -> bool:
    """Whether a load of what an earlier step has written was moved ahead of it (see `_put` in the kernels)."""
    return any('async_copy' in line and 'isVolatile = true' in line for line in compiled.asm['ttgir'].splitlines())


def check(measured: dict[str, int], recorded: list[int] | None, name: str) -> list[str]:
    """What is wrong with one compiled kernel."""
    problems = []
    if measured['spilled']:
        problems.append(f'{name}: {measured["spilled"]} bytes spilled')
    if recorded and measured['registers'] > GROWTH * recorded[0]:
        problems.append(f'{name}: {measured["registers"]} registers, {recorded[0]} recorded')
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--problems', nargs='+', choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
    parser.add_argument('--targets', nargs='+', choices=TARGETS, default=list(TARGETS))
    parser.add_argument('--update', action='store_true', help=f'write {TABLE.name}')
    args = parser.parse_args(arguments)
    require_compiler()

    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    version = '.'.join(triton.__version__.split('.')[:2])
    recorded = table.setdefault(version, {})
    known: dict[tuple[str, str], dict[str, int]] = {}
    failures = []
    for problem in args.problems:
        for dtype in args.dtypes:
            for name, launch in variants(problem, dtype).items():
                for target in args.targets:
                    if (launch.key, target) not in known:
                        compiled = compile_launch(launch, TARGETS[target])
                        if pipelines_updates(compiled):
                            failures.append(f'{name} for {target}: reads ahead of its own updates')
                        known[launch.key, target] = resources(compiled)
                    measured = known[launch.key, target]
                    entry = recorded.get(name, {}).get(target)
                    failures += check(measured, None if args.update else entry, f'{name} for {target}')
                    if args.update:
                        recorded.setdefault(name, {})[target] = [measured[field] for field in FIELDS]
    if args.update:
        lines = []
        for number in sorted(table):
            rows = (f'    {json.dumps(name)}: {json.dumps(table[number][name])}' for name in sorted(table[number]))
            lines.append(f'  "{number}": {{\n' + ',\n'.join(rows) + '\n  }')
        TABLE.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
    print(f'Triton {triton.__version__}: {len(known)} kernels compiled, {len(failures)} failures')
    print('\n'.join(failures), end='\n' if failures else '')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
