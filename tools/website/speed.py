"""Tables of what was measured, from the files of `tools/benchmark.py` in `results/`."""

from __future__ import annotations

import json
from pathlib import Path

from visionssm.hub.card import table

RESULTS = Path(__file__).resolve().parents[2] / 'results'


def resolution_table(file: str = 'resolution_cpu.json') -> str:
    """Time and memory of one image by side, a row per side."""
    report = _report(file)
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


def models_table(file: str = 'models_cpu.json') -> str:
    """Images/s of every model, a column per batch and number of threads; multiply-adds/s in brackets."""
    report = _report(file)
    cells = {(row['model'], row['batch'], row['threads']): row for row in report['results']}
    settings = sorted({(batch, threads) for _, batch, threads in cells})
    headings = ['', 'multiply-adds (G)', *(f'batch {batch}, {_threads(threads)}' for batch, threads in settings)]
    rows = []
    for model in dict.fromkeys(name for name, _, _ in cells):
        found = [cells[(model, *setting)] for setting in settings]
        speeds = [f'{row["images_per_second"]:.1f} ({row["gmacs_per_second"]:.0f})' for row in found]
        name, _, side = model.partition('@')
        rows.append([f'`{name}`' + f' at {side}²' * (side != '224'), f'{found[0]["gmacs"]:.1f}', *speeds])
    return f'{table(headings, rows)}\n\n{_where(report)}'


def large_table() -> str:
    """Images/s of large images."""
    return models_table('large_cpu.json')


def scan_table(file: str = 'scan_cpu.json') -> str:
    """The scan at every shape, beside the loop and what the machine's arithmetic and memory take at least."""
    report = _report(file)
    rows = []
    for row in report['results']:
        ms = row['ms']
        bound = max('arithmetic', 'memory', key=ms.get)
        times = [f'{ms[name]:.1f}' for name in ('cpu', 'torch', 'loop')]
        rows.append([str(tuple(row['shape'])), row['what'].replace('+', ' + '), *times])
        rows[-1] += [f'{row["loop_over_cpu"]:.0f}×', f'{row["cpu_over_bound"]:.1f}× ({bound})']
    headings = ['B, H, W, D, K, N', '', '`cpu`, ms', '`torch`, ms', 'loop, ms', 'loop / `cpu`', '`cpu` / bound']
    return f'{table(headings, rows)}\n\n{_where(report)}'


def training_table() -> str:
    """Images/s of training steps."""
    return models_table('training_cpu.json')


def export_table() -> str:
    """Milliseconds, and the process's peak of memory, of a model in eager mode and in every runtime of its file."""
    report = _report('export_cpu.json')
    keys = 'model', 'batch', 'side', 'threads', 'runtime'
    cells = {tuple(row[key] for key in keys): row for row in report['results']}
    runtimes = list(dict.fromkeys(runtime for *_, runtime in cells))
    rows = []
    for case in dict.fromkeys(key[:-1] for key in cells):
        model, batch, side, threads = case
        found = [cells[(*case, runtime)] for runtime in runtimes]
        shown = [f'{row["ms"]:.0f} ms ({row["over_eager"]:.2f}×), {row["peak_mib"]:.0f} MiB' for row in found]
        rows.append([f'`{model}`', f'{batch} at {side}²', str(threads), *shown])
    machine = report['machine']
    where = f'{_where(report)[:-1]}, {", ".join(f"{name} {machine[name]}" for name in runtimes if name in machine)}'
    clock = '; CPU time, medians of runs that take turns' if machine.get('clock') == 'cpu' else ''
    return f'{table(["model", "images", "threads", *runtimes], rows)}\n\n{where}{clock}.'


def forms_table() -> str:
    """Milliseconds of every form of a model on as many threads as there are, and how much faster than fp32 that is."""
    report = _report('forms_cpu.json')
    threads = max(row['threads'] for row in report['results'])
    report['results'] = [row for row in report['results'] if row['threads'] == threads]
    cells = {(row['model'], row['batch'], row['form']): row for row in report['results']}
    forms = list(dict.fromkeys(form for *_, form in cells))
    rows = []
    for model, batch in dict.fromkeys(key[:-1] for key in cells):
        found = [cells[model, batch, form] for form in forms]
        shown = [f'{row["ms"]:.0f} ms' + f' ({row["over_fp32"]:.2f}×)' * (row['form'] != 'fp32') for row in found]
        rows.append([f'`{model.partition("@")[0]}`', str(batch), *shown])
    return f'{table(["model", "batch", *forms], rows)}\n\n{_where(report).replace(" fp32,", "")}'


def between_table() -> str:
    """How much of a forward pass no operator runs, by model."""
    report = _report('operators_cpu.json')
    rows = {row['model']: row for row in report['results'] if row['form'] == 'fp32' and row['batch'] == 1}
    shown = [[f'`{name.partition("@")[0]}`', f'{100 * row["between_operators"]:.0f} %'] for name, row in rows.items()]
    return f'{table(["model", "between operators"], shown)}\n\n{_where(report)}'


def _report(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding='utf-8'))


def _named(model: str) -> str:
    name, _, form = model.partition(':')
    return f'`{name}`, not fused' if form == 'unfused' else f'`{name}`'


def _threads(number: int) -> str:
    return 'one thread' if number == 1 else f'{number} threads'


def _where(report: dict) -> str:
    machine = report['machine']
    numbers = sorted({row.get('threads', machine['threads']) for row in report['results']})
    threads = _threads(numbers[0]) if len(numbers) == 1 else f'{" and ".join(map(str, numbers))} threads'
    return (
        f'An {machine["cpu"]} with {machine["vectors"]}, {threads}, fp32, torch {machine["torch"].partition("+")[0]}.'
    )
