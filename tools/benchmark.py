"""Benchmarks: medians, both sides in one run, ratios. Speed is measured here and never in a test.

python tools/benchmark.py scan                  # the scan op against the sequential loop and the floor
python tools/benchmark.py scan --json out.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from visionssm.ops import _cpu, selective_scan
from visionssm.scans import get_scan

HERE = Path(__file__).resolve().parent
SCAN_SHAPES = ((8, 56, 56, 96, 4, 1), (8, 14, 14, 384, 2, 16), (1, 64, 64, 384, 2, 16))  # B, H, W, D, K, N


def interleaved_medians(sides: dict[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Median seconds of every side; (function, rounds), the sides taken in turn so that drift hits all alike."""
    for function, _ in sides.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(max(rounds for _, rounds in sides.values())):
        for name, (function, rounds) in sides.items():
            if turn < rounds:
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def sequential_loop(u, delta, A, B, C, D, delta_bias, order):
    """What research repositories run without their extension: permuted copies, decays in memory, a loop over tokens.

    They index `decay[:, t]` in the loop, whose backward fills a tensor of full size at every step; `unbind` does not,
    so the ratios below are against a better loop than theirs.
    """
    batch, length, channels = u.shape
    directions = delta.shape[2]
    k = torch.arange(directions)
    at = order.long().t()  # (T, K)
    x = u[:, at]  # (B, T, K, D)
    dt = torch.nn.functional.softplus(delta[:, at, k] + delta_bias)
    B, C = B[:, at, k], C[:, at, k]
    decay = torch.exp(dt.unsqueeze(-1) * A)
    fresh = (dt * x).unsqueeze(-1) * B.unsqueeze(3)
    state = u.new_zeros(batch, directions, channels, A.shape[-1])
    ys = []
    for decay_t, fresh_t, C_t in zip(decay.unbind(1), fresh.unbind(1), C.unbind(1), strict=True):
        state = decay_t * state + fresh_t
        ys.append(torch.einsum('bkdn,bkn->bkd', state, C_t))
    y = torch.stack(ys, 1) + D * x
    return u.new_zeros(batch, length, channels).index_add(1, at.reshape(-1), y.flatten(1, 2))


def scan_problem(batch, height, width, channels, directions, d_state):
    """Random tensors of one scan, with requires_grad, and the order of its directions."""
    generator = torch.Generator().manual_seed(0)
    length = height * width

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = dict(
        u=normal(batch, length, channels),
        # as a batched projection leaves it: one matrix per direction
        delta=normal(directions, batch, length, channels).permute(1, 2, 0, 3),
        A=-torch.exp(normal(directions, channels, d_state)),
        B=normal(batch, length, directions, d_state),
        C=normal(batch, length, directions, d_state),
        D=normal(directions, channels),
        delta_bias=normal(directions, channels) - 3,
    )
    name = 'cross' if directions == 4 else 'bidirectional'
    order = torch.from_numpy(get_scan(name).table(height, width).copy())
    return {key: x.requires_grad_() for key, x in tensors.items()}, order


def floor_function():
    """The bare loop of `_scan_floor.cpp`, compiled as the kernel is."""
    source = _cpu._SOURCE.read_text() + (HERE / '_scan_floor.cpp').read_text()
    function = ctypes.CDLL(str(_cpu.compile_library(source))).visionssm_scan_floor
    function.argtypes = [ctypes.c_int64] * 5 + [ctypes.c_void_p]
    return function


def peak_extra_bytes(function: Callable[[], object]) -> int:
    """Bytes that `function` allocated at its peak beyond what was there, by torch's own allocation record."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = function()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == '[memory]']
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    del result
    return peak


def bench_scan(rounds: int, backends: list[str]) -> list[dict]:
    """Time every backend, the sequential loop and the floor at the issue's shapes."""
    floor = floor_function()
    threads, gomp = torch.get_num_threads(), _cpu._gomp_parallel()
    results = []
    for shape in SCAN_SHAPES:
        batch, height, width, channels, directions, d_state = shape
        tensors, order = scan_problem(*shape)
        tokens = batch * directions * height * width
        grad = torch.randn(batch, height * width, channels, generator=torch.Generator().manual_seed(1))

        def ours(backend, tensors=tensors, order=order):
            return selective_scan(**tensors, delta_softplus=True, order=order, backend=backend)

        def loop(tensors=tensors, order=order):
            return sequential_loop(**tensors, order=order)

        def forward(function, *args):
            def run():
                with torch.no_grad():
                    return function(*args)

            return run

        def forward_backward(function, *args, tensors=tensors, grad=grad):
            return lambda: torch.autograd.grad(function(*args), list(tensors.values()), grad)

        floors = [(lambda back=back: floor(tokens, channels, d_state, back, threads, gomp)) for back in (0, 1)]
        with torch.no_grad():
            worst = max((ours(b) - loop()).abs().max().item() for b in backends)
        for what, wrap in (('forward', forward), ('forward+backward', forward_backward)):
            sides = {backend: (wrap(ours, backend), rounds) for backend in backends}
            sides['loop'] = (wrap(loop), max(3, rounds // 5))
            sides['floor'] = (floors[0] if what == 'forward' else lambda f=floors: [g() for g in f], rounds)
            medians = interleaved_medians(sides)
            row = {'shape': shape, 'what': what, 'ms': {name: 1e3 * value for name, value in medians.items()}}
            row['loop_over_cpu'] = medians['loop'] / medians['cpu']
            row['cpu_over_floor'] = medians['cpu'] / medians['floor']
            if what == 'forward':
                output = batch * height * width * channels * 4
                row['peak_over_output'] = peak_extra_bytes(forward(ours, 'cpu')) / output
                row['max_abs_difference'] = worst
            results.append(row)
            print(format_scan_row(row), flush=True)
    return results


def format_scan_row(row: dict) -> str:
    """One line of the table."""
    times = '  '.join(f'{name} {value:9.2f} ms' for name, value in row['ms'].items())
    text = f'{str(row["shape"]):28} {row["what"]:17} {times}  loop/cpu {row["loop_over_cpu"]:6.1f}x'
    text += f'  cpu/floor {row["cpu_over_floor"]:5.2f}x'
    if 'peak_over_output' in row:
        text += f'  peak/output {row["peak_over_output"]:.2f}'
    return text


def machine() -> dict:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        model = next(
            (line.split(':')[1].strip() for line in cpuinfo.read_text().splitlines() if 'model name' in line), model
        )
    return {
        'cpu': model,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    scan = commands.add_parser('scan', help='the scan op against the sequential loop and the floor, on this CPU')
    scan.add_argument('--rounds', type=int, default=15, help='timed runs of each side (default: 15)')
    scan.add_argument('--backends', nargs='+', default=['cpu', 'torch'], help='backends to time (default: cpu torch)')
    scan.add_argument('--json', type=Path, help='write the results here')
    args = parser.parse_args()
    report = {'machine': machine()}
    print(report['machine'])
    report['results'] = bench_scan(args.rounds, args.backends)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
