"""Tables of what was measured, from the files of `tools/benchmark.py` in `results/`."""

from __future__ import annotations

import json
from pathlib import Path

from visionssm.hub.card import table

RESULTS = Path(__file__).resolve().parents[2] / 'results'


def resolution_table() -> str:
    """Time and memory of one image by side, a row per side."""
    report = _report('resolution_cpu.json')
    cells = {(row['model'], row['side']): row for row in report['results']}
    models, sides = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    ours, *others = models
    rows = []
    for side in sides:
        row = [f'{side}²']
        for model in models:
            found = cells.get((model, side))
            row.append(f'{found["ms"]:.0f} ms, {found["peak_mib"]:.0f} MiB' if found else 'not run')
            if found and model in others:
                row[-1] += f' ({found["ms"] / cells[ours, side]["ms"]:.2f}×)'
        rows.append(row)
    return f'{table(["image", *map(_named, models)], rows)}\n\n{_where(report)}'


def _report(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding='utf-8'))


def _named(model: str) -> str:
    name, _, form = model.partition(':')
    return f'`{name}`, not fused' if form == 'unfused' else f'`{name}`'


def _where(report: dict) -> str:
    machine = report['machine']
    threads = sorted({row['threads'] for row in report['results']})
    return (
        f'An {machine["cpu"]}, {" and ".join(map(str, threads))} thread{"s" * (threads != [1])}, fp32, '
        f'torch {machine["torch"].partition("+")[0]}.'
    )
