"""Time and memory of one image against its side: every measurement in a process of its own, which this file is, too."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

# attention that keeps its weights, as the papers compared, is named beside timm's default
RESOLUTION_MODELS = ('vim_tiny_patch16_224', 'deit_tiny_patch16_224', 'deit_tiny_patch16_224:unfused')
SIDES = [224, 448, 672, 896, 1248, 1600, 2048]
_LARGEST_UNFUSED = 1248  # of more pixels, the weights alone take gigabytes
_SECONDS = 2.0  # of timed runs in a process, at least one


def bench_resolution(models: list[str], sides: list[int], rounds: int) -> list[dict]:
    """Median seconds and peak growth of memory of every model at every side, `rounds` processes of each in turn."""
    import torch

    runs = defaultdict(list)
    pairs = [
        (side, name) for side in sides for name in models if side <= _LARGEST_UNFUSED or not name.endswith(':unfused')
    ]
    for _ in range(rounds):
        for side, name in pairs:
            command = [sys.executable, __file__, name, str(side), str(torch.get_num_threads())]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[side, name].append(json.loads(answer))
    rows = []
    for (side, name), found in runs.items():
        row = {'model': name, 'side': side, 'threads': torch.get_num_threads()}
        row |= {key: statistics.median(run[key] for run in found) for key in ('ms', 'peak_mib')}
        rows.append(row)
        print('{model:32} {side:5} {ms:9.1f} ms {peak_mib:8.1f} MiB'.format(**row), flush=True)
    for name in models:
        print(f'{name}: time grows with pixels to the power of {exponent(rows, name):.2f}')
    return rows


def exponent(rows: list[dict], name: str) -> float:
    """The slope of log time against log pixels, by least squares."""
    points = [(math.log(row['side'] ** 2), math.log(row['ms'])) for row in rows if row['model'] == name]
    if len(points) < 2:
        return math.nan
    slope, _ = statistics.linear_regression(*zip(*points, strict=True))
    return slope


def plot_resolution(report: dict, path: Path) -> None:
    """Draw seconds and memory of every model against the image's side."""
    from matplotlib.figure import Figure

    styles = {'vim': ('#0072b2', 'o', '-'), 'deit': ('#d55e00', 's', '-'), 'unfused': ('#d55e00', 'D', '--')}
    figure = Figure(figsize=(9, 3.8), layout='constrained')
    for axes, key, label in zip(
        figure.subplots(1, 2), ('ms', 'peak_mib'), ('milliseconds per image', 'peak memory growth, MiB'), strict=True
    ):
        for name in dict.fromkeys(row['model'] for row in report['results']):
            rows = [row for row in report['results'] if row['model'] == name]
            color, marker, line = styles['unfused' if name.endswith(':unfused') else name.partition('_')[0]]
            values = [row['side'] for row in rows], [row[key] for row in rows]
            axes.plot(*values, line, color=color, marker=marker, label=_title(name))
        axes.set(xscale='log', yscale='log', xlabel='side of the image, pixels', ylabel=label)
        sides = sorted({row['side'] for row in report['results']})
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _title(name: str) -> str:
    model, _, form = name.partition(':')
    short = model.removesuffix('_patch16_224')
    return short if not short.startswith('deit') else f'{short}, attention {"not fused" if form else "fused"}'


def _measure(name: str, side: int, threads: int) -> dict:
    """One image through the model: the median of some runs, and what the peak of memory grew by."""
    import resource

    import timm
    import torch

    import visionssm.models  # noqa: F401 - registers the models

    torch.set_num_threads(threads)
    model, _, form = name.partition(':')
    timm.layers.set_fused_attn(form != 'unfused')
    net = timm.create_model(model, img_size=side).eval()
    x = torch.randn(1, 3, side, side)
    unit = 1024 if sys.platform != 'darwin' else 1
    with torch.inference_mode():
        net(x[..., :32, :32]) if not hasattr(net, 'patch_embed') else net.patch_embed(x)  # compile and set up
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        net(x)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        times = []
        while not times or sum(times) < _SECONDS:
            start = time.perf_counter()
            net(x)
            times.append(time.perf_counter() - start)
    return {'ms': 1e3 * statistics.median(times), 'peak_mib': (peak - before) / 2**20}


if __name__ == '__main__':
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
