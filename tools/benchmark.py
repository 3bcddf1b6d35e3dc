"""Benchmarks: medians, both sides in one run, ratios. Speed is measured here and never in a test.

python tools/benchmark.py scan                  # the scan op against the sequential loop and the floor
python tools/benchmark.py scan --json out.json
python tools/benchmark.py models --published --clock cpu --batch 1 --at-once 6
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
from functools import partial
from pathlib import Path

import timm
import torch

import visionssm.models  # noqa: F401 - registers the models
from visionssm.catalog.models import model_names, tag_record
from visionssm.ops import cpu, selective_scan
from visionssm.scans import get_scan

HERE = Path(__file__).resolve().parent
MODELS = [
    'vmamba_tiny_s1l8',
    'mambavision_tiny',
    'swin_tiny_patch4_window7_224',
    'convnext_tiny',
    'mambaout_tiny',
    'vssd_tiny',
    'deit_small_patch16_224',
]
MODELS += [
    'vim_small_patch16_224',
    'mambareg_small_patch16_224',
    *(f'{name}_tiny_patch16_224@{side}' for side in (448, 672) for name in ('vim', 'deit')),
]
MODELS += ['mobilemamba_t4@192', 'mobilenetv4_conv_small', 'fastvit_t8@256']
MODELS += ['vcmamba_s', 'efficientvmamba_tiny', 'efficientformer_l1', 'edgenext_small']
SCAN_SHAPES = ((8, 56, 56, 96, 4, 1), (8, 14, 14, 384, 2, 16), (1, 64, 64, 384, 2, 16))  # B, H, W, D, K, N


CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, wall time by default."""
    start = clock()
    function()
    return clock() - start


def interleaved_medians(
    sides: dict[str, tuple[Callable[[], object], int]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of every side; (function, rounds), the sides taken in turn so that drift affects all alike."""
    for function, _ in sides.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(max(rounds for _, rounds in sides.values())):
        for name, (function, rounds) in sides.items():
            if turn < rounds:
                times[name].append(seconds(function, clock))
    return {name: statistics.median(values) for name, values in times.items()}


def sequential_loop(u, delta, A, B, C, D, delta_bias, order, indexed=False):
    """What research repositories run without their extension: permuted copies, decays in memory, a loop over tokens.

    They index `decay[:, t]` in the loop (`indexed`), whose backward fills a tensor of full size at every step; the
    plain form here unbinds, so ratios to it are ratios to a better loop than theirs.
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

    def along_steps(x):
        return (x[:, t] for t in range(length)) if indexed else x.unbind(1)

    for decay_t, fresh_t, C_t in zip(along_steps(decay), along_steps(fresh), along_steps(C), strict=True):
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

    tensors = {
        'u': normal(batch, length, channels),
        # as a batched projection leaves it: one matrix per direction
        'delta': normal(directions, batch, length, channels).permute(1, 2, 0, 3),
        'A': -torch.exp(normal(directions, channels, d_state)),
        'B': normal(batch, length, directions, d_state),
        'C': normal(batch, length, directions, d_state),
        'D': normal(directions, channels),
        'delta_bias': normal(directions, channels) - 3,
    }
    name = 'cross' if directions == 4 else 'bidirectional'
    order = torch.from_numpy(get_scan(name).table(height, width).copy())
    return {key: x.requires_grad_() for key, x in tensors.items()}, order


def floor_function():
    """The bare loop of `_scan_floor.cpp`, compiled as the kernel is."""
    source = cpu.source() + (HERE / '_scan_floor.cpp').read_text()
    function = ctypes.CDLL(str(cpu.compile_library(source))).visionssm_scan_floor
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


def bench_scan(
    rounds: int, backends: list[str], shape: tuple[int, ...], floor: Callable, indexed: bool = False
) -> list[dict]:
    """Time every backend, the sequential loop and the floor at one shape: forward, then forward and backward."""
    batch, height, width, channels, directions, d_state = shape
    tensors, order = scan_problem(*shape)
    leaves = list(tensors.values())
    work = (batch * directions * height * width, channels, d_state)
    threads, gomp = torch.get_num_threads(), cpu.gomp_parallel()
    grad = torch.randn(batch, height * width, channels, generator=torch.Generator().manual_seed(1))
    functions = {b: partial(selective_scan, **tensors, delta_softplus=True, order=order, backend=b) for b in backends}
    functions['loop'] = partial(sequential_loop, **tensors, order=order)

    def forward(name):
        with torch.no_grad():
            return functions[name]()

    def forward_backward(name):
        return torch.autograd.grad(functions[name](), leaves, grad)

    def bare(passes):
        for backward in range(passes):
            floor(*work, backward, threads, gomp)

    rows = []
    for what, run, passes in (('forward', forward, 1), ('forward+backward', forward_backward, 2)):
        sides = {b: (partial(run, b), rounds) for b in backends}
        sides['loop'] = (partial(run, 'loop'), max(3, rounds // 5))
        sides['floor'] = (partial(bare, passes), rounds)
        medians = interleaved_medians(sides)
        row = {'shape': shape, 'what': what, 'ms': {name: 1e3 * value for name, value in medians.items()}}
        row['loop_over_cpu'] = medians['loop'] / medians['cpu']
        row['cpu_over_floor'] = medians['cpu'] / medians['floor']
        if what == 'forward':
            expected = forward('loop')
            row['max_abs_difference'] = max((forward(b) - expected).abs().max().item() for b in backends)
            row['peak_over_output'] = peak_extra_bytes(partial(forward, 'cpu')) / (expected.numel() * 4)
        if indexed and what == 'forward+backward':  # minutes: once
            functions['indexed loop'] = partial(sequential_loop, **tensors, order=order, indexed=True)
            row['ms']['indexed loop'] = 1e3 * seconds(partial(run, 'indexed loop'))
            row['indexed_loop_over_cpu'] = row['ms']['indexed loop'] / row['ms']['cpu']
        rows.append(row)
        print(format_scan_row(row), flush=True)
    return rows


def format_scan_row(row: dict) -> str:
    """One line of the table."""
    times = '  '.join(f'{name} {value:9.2f} ms' for name, value in row['ms'].items())
    text = f'{str(row["shape"]):28} {row["what"]:17} {times}  loop/cpu {row["loop_over_cpu"]:6.1f}x'
    text += f'  cpu/floor {row["cpu_over_floor"]:5.2f}x'
    if 'indexed_loop_over_cpu' in row:
        text += f'  indexed loop/cpu {row["indexed_loop_over_cpu"]:.0f}x'
    if 'peak_over_output' in row:
        text += f'  peak/output {row["peak_over_output"]:.2f}'
    return text


def bench_models(
    pairs: list[tuple[str, int]], batch: int, rounds: int, clock: str = 'wall', at_once: int | None = None
) -> list[dict]:
    """Images/s of inference of (model, image side) pairs, taken in turn on one random batch each.

    Args:
        pairs: What to measure.
        batch: Images at once.
        rounds: Timed runs of each.
        clock: Of `CLOCKS`: 'cpu' is the time of the process, which other processes disturb less.
        at_once: Models in memory, which are the ones that take turns; None: all.
    """
    rows = []
    at_once = at_once or len(pairs)
    for first in range(0, len(pairs), at_once):
        sides = {}
        for name, side in pairs[first : first + at_once]:
            sides[f'{name}@{side}'] = (partial(infer, create(name, side), torch.randn(batch, 3, side, side)), rounds)
        for name, median in interleaved_medians(sides, CLOCKS[clock]).items():
            row = {'model': name, 'images_per_second': batch / median, 'ms': 1e3 * median}
            print(f'{name:44} {row["images_per_second"]:8.2f} images/s {row["ms"]:9.1f} ms', flush=True)
            rows.append(row)
    return rows


def published() -> list[tuple[str, int]]:
    """Every classifier of which an accuracy is reported, at its own size."""
    names = [name for name in model_names(tags=True) if tag_record(timm.get_pretrained_cfg(name)).metrics.get('top-1')]
    models = dict.fromkeys(name.partition('.')[0] for name in names)
    return [(name, timm.get_pretrained_cfg(name).input_size[-1]) for name in models]


def create(name: str, side: int) -> torch.nn.Module:
    """The model in eval mode, made for images of that side if it is tied to one side at all."""
    default = timm.get_pretrained_cfg(name).input_size[-1]
    return timm.create_model(name, **({} if side == default else {'img_size': side})).eval()


def infer(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One forward pass without gradients."""
    with torch.inference_mode():
        return model(x)


def profile_model(name: str, side: int, batch: int) -> str:
    """Where the time of a forward pass goes: torch's operators by self time."""
    from torch.profiler import ProfilerActivity, profile

    model, x = create(name, side), torch.randn(batch, 3, side, side)
    infer(model, x)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(3):
            infer(model, x)
    return record.key_averages().table(sort_by='self_cpu_time_total', row_limit=15, max_name_column_width=45)


def machine() -> dict:
    """The machine that the figures were measured on."""
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
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    scan = commands.add_parser('scan', help='the scan op against the sequential loop and the floor, on this CPU')
    scan.add_argument('--rounds', type=int, default=15, help='timed runs of each side (default: 15)')
    scan.add_argument('--backends', nargs='+', default=['cpu', 'torch'], help='backends to time (default: cpu torch)')
    scan.add_argument('--indexed-loop', action='store_true', help='also the loop as research code has it; many minutes')
    scan.add_argument('--json', type=Path, help='write the results here')
    models = commands.add_parser('models', help='whole models beside timm models, images/s of inference on this CPU')
    models.add_argument('--models', nargs='+', default=MODELS, metavar='NAME[@SIDE]', help='default side: 224')
    models.add_argument('--published', action='store_true', help='every published classifier at its own size instead')
    models.add_argument('--clock', choices=CLOCKS, default='wall', help='cpu: time of the process, on one thread')
    models.add_argument('--at-once', type=int, metavar='N', help='models that take turns (default: all)')
    models.add_argument('--batch', type=int, default=8, help='images at once (default: 8)')
    models.add_argument('--rounds', type=int, default=5, help='timed runs of each model (default: 5)')
    models.add_argument('--profile', metavar='NAME[@SIDE]', help='show where the time of one model goes instead')
    models.add_argument('--json', type=Path, help='write the results here')
    kernels = commands.add_parser('kernels', help='what the GPU kernels cost, from compiled code; needs no GPU')
    kernels.add_argument('--model-bytes', action='store_true', required=True, help='bytes and instructions per element')
    args = parser.parse_args()
    if args.command == 'kernels':
        from _kernel_bytes import model_bytes_table

        print(model_bytes_table())
        return 0
    if args.command == 'models' and args.clock == 'cpu':
        torch.set_num_threads(1)
    report = {'machine': machine()}
    print(report['machine'])
    if args.command == 'models':
        if args.profile:
            print(profile_model(*named_side(args.profile), args.batch))
            return 0
        report['machine'] |= {'clock': args.clock, 'batch': args.batch}
        pairs = published() if args.published else [named_side(name) for name in args.models]
        report['results'] = bench_models(pairs, args.batch, args.rounds, args.clock, args.at_once)
    else:
        floor = floor_function()
        rows = [bench_scan(args.rounds, args.backends, shape, floor, args.indexed_loop) for shape in SCAN_SHAPES]
        report['results'] = sum(rows, [])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')
    return 0


def named_side(name: str) -> tuple[str, int]:
    """Split NAME@SIDE; the side is 224 unless given."""
    name, _, side = name.partition('@')
    return name, int(side or 224)


if __name__ == '__main__':
    sys.exit(main())
