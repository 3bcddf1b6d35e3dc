"""The C++ libraries that a wheel for one platform brings in `prebuilt/`: one per level of processor (`NEEDS`).

`tools/build_wheels.py` builds them. A source checkout and the pure wheel have none, and compile at first use.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

FOLDER = Path(__file__).with_name('prebuilt')
COMPILE = 'compile'  # instead of a name: none of them

_V2 = 'ssse3 sse4_1 sse4_2 popcnt'
_V3 = f'{_V2} avx avx2 bmi bmi2 f16c fma3 lzcnt'
NEEDS = {  # features as torch.cpu.get_capabilities names them; the best first
    'x86-64-v4': frozenset(f'{_V3} avx512_f avx512_bw avx512_cd avx512_dq avx512_vl'.split()),
    'x86-64-v3': frozenset(_V3.split()),
    'x86-64-v2': frozenset(_V2.split()),
    'arm64-bf16': frozenset({'bf16'}),
    'arm64-neon': frozenset(),
}


def features() -> frozenset[str]:
    """What this processor and its operating system can do, by the names in `NEEDS`."""
    if hasattr(torch.cpu, 'get_capabilities'):
        return frozenset(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    levels = {'AVX512': 'x86-64-v4', 'AVX2': 'x86-64-v3'}  # older torch tells no more than this
    return NEEDS[levels.get(torch.backends.cpu.get_cpu_capability(), 'x86-64-v2')]


def find() -> Path | None:
    """The library for this processor, or the one that `VISIONSSM_LIBRARY` names; None: compile.

    Raises:
        ValueError: If `VISIONSSM_LIBRARY` names one that is not here or that this processor can't run.
    """
    asked = os.environ.get('VISIONSSM_LIBRARY', '')
    if asked == COMPILE:
        return None
    there = {path.stem: path for path in FOLDER.glob('*') if path.stem in NEEDS}
    have = features()
    runs = [name for name in NEEDS if name in there and NEEDS[name] <= have]
    if asked and asked not in runs:
        why = f'lacks {", ".join(sorted(NEEDS[asked] - have))}' if asked in there else 'has no such library'
        where = 'this processor' if asked in there else 'this installation'
        raise ValueError(
            f'VISIONSSM_LIBRARY names {asked!r}, but {where} {why}; choose from {", ".join([*runs, COMPILE])}'
        )
    return there[asked or runs[0]] if runs else None
