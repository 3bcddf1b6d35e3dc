"""Benchmarks: medians, both sides in one run, ratios. Speed is measured here and never in a test.

python tools/benchmark.py scan --baseline ../other    # the scan: loop, bounds, another checkout's kernel
python tools/benchmark.py models --batch 1 8 --threads 1 2 --train
python tools/benchmark.py resolution --plot resolution.png
python tools/benchmark.py export                      # exported models in onnxruntime and OpenVINO
python tools/benchmark.py forms                       # half precision, torch.compile, and time between operators
python tools/benchmark.py models --published --clock cpu --batch 1 --at-once 6
python tools/benchmark.py models --json out.json      # every command writes its figures so
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from _exported import CASES, EXPORTED_MODELS, RUNTIMES, bench_exported
from _forms import FORM_MODELS, FORMS, bench_forms
from _resolution import RESOLUTION_MODELS, SIDES, bench_resolution, plot_resolution
from _scan_problem import scan_problem, seconds, timed, timed_scan
from _worker import CLOCKS, Worker

import visionssm.models  # noqa: F401 - registers the models
from visionssm.apps.export import export_model
from visionssm.catalog.machine import processor
from visionssm.catalog.macs import count_macs
from visionssm.catalog.models import model_names, tag_record
from visionssm.compare.cost import interleaved_medians, peak_extra_bytes
from visionssm.ops import cpu, selective_scan

HERE = Path(__file__).resolve().parent
MODELS = [
    'vmamba_tiny_s1l8',
    'mambavision_tiny',
    'swin_tiny_patch4_window7_224',
    'convnext_tiny',
    'mambaout_tiny',
    'vssd_tiny',
    'spatialmamba_tiny',
    'deit_small_patch16_224',
]
MODELS += [
    'vim_small_patch16_224',
    'mambareg_small_patch16_224',
    'videomamba_small_patch16_224',
    *(f'{name}_tiny_patch16_224@{side}' for side in (448, 672) for name in ('vim', 'deit')),
]
MODELS += ['mobilemamba_t4@192', 'mobilenetv4_conv_small', 'fastvit_t8@256']
MODELS += ['localvim_tiny_patch16_224', 'localvmamba_tiny']
MODELS += ['vcmamba_s', 'efficientvmamba_tiny', 'efficientformer_l1', 'edgenext_small']
SCAN_SHAPES = ((8, 56, 56, 96, 4, 1), (8, 14, 14, 384, 2, 16), (1, 64, 64, 384, 2, 16))  # B, H, W, D, K, N


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


class Bounds:
    """What a scan takes at least on this machine: its arithmetic by `_scan_bound.cpp`, and moving its tensors once."""

    def __init__(self) -> None:
        source = cpu.source() + (HERE / '_scan_bound.cpp').read_text()
        self._function = ctypes.CDLL(str(cpu.compile_library(source))).visionssm_scan_bound
        self._function.argtypes = [ctypes.c_int64] * 5 + [ctypes.c_void_p]
        source, target = torch.rand(2, 1 << 26)
        moved = 2 * source.numel() * source.element_size()
        self.bytes_per_second = moved / min(seconds(lambda: target.copy_(source)) for _ in range(7))

    def arithmetic(self, shape: tuple[int, ...], what: str) -> float:
        """Seconds of the bare loop."""
        batch, height, width, channels, directions, d_state = shape
        work = batch * directions * height * width, channels, d_state
        threads, gomp = torch.get_num_threads(), cpu.gomp_parallel()
        passes = {'forward': (0,), 'backward': (1,), 'forward+backward': (0, 1)}[what]
        return seconds(lambda: [self._function(*work, backward, threads, gomp) for backward in passes])

    def memory(self, tensors: dict[str, torch.Tensor], what: str) -> float:
        """Seconds of reading every input and writing every output once, at the speed of a large copy."""
        out = tensors['u'].nbytes
        inputs = sum(x.nbytes for x in tensors.values())
        moved = {'forward': inputs + out, 'backward': 2 * inputs + out}
        moved['forward+backward'] = moved['forward'] + moved['backward']
        return moved[what] / self.bytes_per_second


def checkout(folder: Path) -> Worker:
    """The `cpu` backend of a checkout, in a process of its own: what else is timed disturbs its memory no more."""
    paths = os.pathsep.join((str(folder), str(folder / 'kernels')))
    return Worker(HERE / '_scan_worker.py', torch.get_num_threads(), env=os.environ | {'PYTHONPATH': paths})


def bench_scan(
    rounds: int,
    backends: list[str],
    shape: tuple[int, ...],
    bounds: Bounds,
    checkouts: dict[str, Worker] | None = None,
    indexed: bool = False,
) -> list[dict]:
    """Time every backend, the sequential loop, the bounds and a baseline at one shape: inference, backward, both."""
    tensors, order = scan_problem(*shape)
    leaves = list(tensors.values())
    timers = {backend: timed_scan(backend, tensors, order) for backend in backends}
    timers['loop'] = timed(partial(sequential_loop, **tensors, order=order), leaves)
    for name, worker in (checkouts or {}).items():
        worker.ask(shape=shape)
        timers[name] = {what: partial(worker.ask, run=what) for what in timers['loop']}
    rows = []
    for what in timers['loop']:
        sides = {name: (of[what], max(3, rounds // 5) if name == 'loop' else rounds) for name, of in timers.items()}
        sides['arithmetic'] = (partial(bounds.arithmetic, shape, what), rounds)
        medians = interleaved_medians(sides) | {'memory': bounds.memory(tensors, what)}
        row = {'shape': shape, 'what': what, 'ms': {name: 1e3 * value for name, value in medians.items()}}
        row['loop_over_cpu'] = medians['loop'] / medians['cpu']
        row['cpu_over_bound'] = medians['cpu'] / max(medians['arithmetic'], medians['memory'])
        if checkouts:
            row['baseline_over_cpu'] = medians['baseline'] / medians['cpu']
        if what == 'forward':
            with torch.no_grad():
                run = partial(selective_scan, **tensors, delta_softplus=True, order=order)
                expected = sequential_loop(**tensors, order=order)
                row['max_abs_difference'] = max((run(backend=b) - expected).abs().max().item() for b in backends)
                row['peak_over_output'] = peak_extra_bytes(partial(run, backend='cpu')) / expected.nbytes
        if indexed and what == 'forward+backward':  # minutes: once
            loop = timed(partial(sequential_loop, **tensors, order=order, indexed=True), leaves)
            row['ms']['indexed loop'] = 1e3 * loop[what]()
            row['indexed_loop_over_cpu'] = row['ms']['indexed loop'] / row['ms']['cpu']
        rows.append(row)
        print(format_scan_row(row), flush=True)
    return rows


def format_scan_row(row: dict) -> str:
    """One line of the table."""
    times = '  '.join(f'{name} {value:.2f} ms' for name, value in row['ms'].items())
    ratios = '  '.join(f'{name.replace("_over_", "/")} {row[name]:.2f}' for name in row if '_over_' in name)
    return f'{str(row["shape"]):27} {row["what"]:17} {times}  {ratios}'


def bench_models(
    pairs: list[tuple[str, int]],
    batch: int,
    rounds: int,
    train: bool = False,
    clock: str = 'wall',
    at_once: int | None = None,
) -> list[dict]:
    """Images/s of (model, image side) pairs, taken in turn on one random batch each.

    Args:
        pairs: What to measure.
        batch: Images at once.
        rounds: Timed runs of each.
        train: Whether to take training steps: a forward and a backward pass and one update by AdamW.
        clock: Of `CLOCKS`: 'cpu' is the time of the process, which other processes disturb less.
        at_once: Models in memory, which are the ones that take turns; None: all.
    """
    rows = []
    at_once = at_once or len(pairs)
    for first in range(0, len(pairs), at_once):
        sides, macs = {}, {}
        for name, side in pairs[first : first + at_once]:
            model, x = create(name, side), torch.randn(batch, 3, side, side)
            macs[f'{name}@{side}'] = count_macs(create(name, side, device='meta'), (3, side, side))
            run = training_step(model, x) if train else partial(infer, model, x)
            sides[f'{name}@{side}'] = (partial(seconds, run, CLOCKS[clock]), rounds)
        for name, median in interleaved_medians(sides).items():
            speed = batch / median
            row = {'model': name, 'what': 'training' if train else 'inference', 'batch': batch}
            row |= {'threads': torch.get_num_threads(), 'images_per_second': speed, 'ms': 1e3 * median}
            row |= {'gmacs': macs[name] / 1e9, 'gmacs_per_second': speed * macs[name] / 1e9}
            print(
                '{model:40} {what} batch {batch}, threads {threads}: {images_per_second:8.2f} images/s {ms:9.1f} ms '
                '{gmacs:7.2f} G multiply-adds, {gmacs_per_second:6.1f} G/s'.format(**row),
                flush=True,
            )
            rows.append(row)
    return rows


def published() -> list[tuple[str, int]]:
    """Every classifier of which an accuracy is reported, at its own size."""
    names = [name for name in model_names(tags=True) if tag_record(timm.get_pretrained_cfg(name)).metrics.get('top-1')]
    models = dict.fromkeys(name.partition('.')[0] for name in names)
    return [(name, timm.get_pretrained_cfg(name).input_size[-1]) for name in models]


def create(name: str, side: int, device: str = 'cpu') -> torch.nn.Module:
    """The model in eval mode, made for images of that side if it is tied to one side at all."""
    config = timm.get_pretrained_cfg(name)
    with torch.device(device):
        return timm.create_model(name, **({'img_size': side} if config.fixed_input_size else {})).eval()


def training_step(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A function that trains the model by one step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


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
    return {
        'cpu': processor(torch.device('cpu')),
        'vectors': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }


def main() -> int:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    scan = commands.add_parser('scan', help='the scan op against a sequential loop and its bounds, on this CPU')
    scan.add_argument('--rounds', type=int, default=15, help='timed runs of each side (default: 15)')
    scan.add_argument('--backends', nargs='+', default=['cpu', 'torch'], help='backends to time (default: cpu torch)')
    scan.add_argument('--baseline', type=Path, metavar='FOLDER', help='another checkout, whose kernel is timed in turn')
    scan.add_argument('--indexed-loop', action='store_true', help='also the loop as research code has it; many minutes')
    models = commands.add_parser('models', help='whole models beside timm models, images/s on this CPU')
    models.add_argument('--models', nargs='+', default=MODELS, metavar='NAME[@SIDE]', help='default side: 224')
    models.add_argument('--published', action='store_true', help='every published classifier at its own size instead')
    models.add_argument('--clock', choices=CLOCKS, default='wall', help='cpu: time of the process, on one thread')
    models.add_argument('--at-once', type=int, metavar='N', help='models that take turns (default: all)')
    models.add_argument('--batch', type=int, nargs='+', default=[8], help='images at once (default: 8)')
    models.add_argument('--rounds', type=int, default=5, help='timed runs of each model (default: 5)')
    models.add_argument('--train', action='store_true', help='training steps instead of inference')
    models.add_argument('--profile', metavar='NAME[@SIDE]', help='show where the time of one model goes instead')
    resolution = commands.add_parser('resolution', help='time and memory of one image against its side')
    resolution.add_argument('--models', nargs='+', default=list(RESOLUTION_MODELS), metavar='NAME[:unfused]')
    resolution.add_argument('--sides', type=int, nargs='+', default=SIDES, help='in pixels')
    resolution.add_argument('--rounds', type=int, default=3, help='processes of each model and side (default: 3)')
    resolution.add_argument('--plot', type=Path, metavar='FILE', help='draw the figures here')
    export = commands.add_parser('export', help='exported models in onnxruntime and OpenVINO against eager mode')
    export.add_argument('--models', nargs='+', default=list(EXPORTED_MODELS), metavar='NAME')
    export.add_argument('--cases', nargs='+', default=list(CASES), metavar='BATCH@SIDE')
    export.add_argument('--clock', choices=CLOCKS, default='wall', help='cpu: time of the process, on one thread')
    export.add_argument('--rounds', type=int, default=7, help='timed runs of each runtime (default: 7)')
    forms = commands.add_parser('forms', help='half precision and torch.compile against eager fp32, on this CPU')
    forms.add_argument(
        '--models', nargs='+', default=list(FORM_MODELS), metavar='NAME[@SIDE]', help='default side: 224'
    )
    forms.add_argument('--forms', nargs='+', choices=FORMS, default=list(FORMS), help='default: all')
    forms.add_argument('--batch', type=int, nargs='+', default=[1], help='images at once (default: 1)')
    forms.add_argument('--rounds', type=int, default=7, help='timed runs of each form (default: 7)')
    for command in (scan, models, resolution, export, forms):
        command.add_argument('--threads', type=int, nargs='+', help='threads (default: those of torch)')
        command.add_argument('--json', type=Path, help='write the results here')
    kernels = commands.add_parser('kernels', help='what the GPU kernels cost, from compiled code; needs no GPU')
    kernels.add_argument('--model-bytes', action='store_true', required=True, help='bytes and instructions per element')
    args = parser.parse_args()
    if args.command == 'kernels':
        from _kernel_bytes import model_bytes_table

        print(model_bytes_table())
        return 0
    report = {'machine': machine(), 'results': []}
    print(report['machine'])
    if args.command == 'models' and args.profile:
        print(profile_model(*named_side(args.profile), args.batch[0]))
        return 0
    if getattr(args, 'clock', None) == 'cpu':
        args.threads = [1]
        report['machine']['clock'] = args.clock
    for threads in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        report['results'] += RUN[args.command](args)
    if args.command == 'export':
        report['machine'] |= {name: version(name) for name in RUNTIMES[1:]}
    if args.command == 'resolution' and args.plot:
        plot_resolution(report, args.plot)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')
    return 0


def run_scan(args: argparse.Namespace) -> list[dict]:
    """All shapes."""
    bounds, checkouts = Bounds(), {}
    if args.baseline:
        checkouts = {'cpu': checkout(HERE.parent), 'baseline': checkout(args.baseline)}
    print(f'{bounds.bytes_per_second / 1e9:.1f} GB/s in a large copy')
    rows = [
        bench_scan(args.rounds, args.backends, shape, bounds, checkouts, args.indexed_loop) for shape in SCAN_SHAPES
    ]
    return sum(rows, [])


def run_models(args: argparse.Namespace) -> list[dict]:
    """All batches."""
    pairs = published() if args.published else [named_side(name) for name in args.models]
    options = args.rounds, args.train, args.clock, args.at_once
    return sum((bench_models(pairs, batch, *options) for batch in args.batch), [])


def run_resolution(args: argparse.Namespace) -> list[dict]:
    """All sides."""
    return bench_resolution(args.models, args.sides, args.rounds)


def run_export(args: argparse.Namespace) -> list[dict]:
    """All models and cases, from files of one size that take any batch."""
    rows, threads = [], torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            files = {}
            for case in args.cases:
                side = int(case.partition('@')[2])
                if side not in files:
                    files[side] = Path(folder) / f'{name}_{side}.onnx'
                    export_model(create(name, side), files[side], 'onnx', (3, side, side))
                rows += bench_exported(name, case, files[side], threads, args.rounds, args.clock)
    return rows


def run_forms(args: argparse.Namespace) -> list[dict]:
    """All models and batches."""
    cases = [(*named_side(name), batch) for name in args.models for batch in args.batch]
    return sum((bench_forms(create, *case, args.rounds, args.forms) for case in cases), [])


RUN = {'scan': run_scan, 'models': run_models, 'resolution': run_resolution, 'export': run_export, 'forms': run_forms}


def named_side(name: str) -> tuple[str, int]:
    """Split NAME@SIDE; the side is 224 unless given."""
    name, _, side = name.partition('@')
    return name, int(side or 224)


if __name__ == '__main__':
    sys.exit(main())
