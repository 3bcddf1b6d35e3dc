"""Everything that needs a GPU, in one command: tests, selfcheck and benchmark, written as JSON and Markdown.

    python tools/gpu_report.py                    # all; writes runs/gpu_report.json and runs/gpu_report.md
    python tools/gpu_report.py --skip-tests       # the figures alone
    python tools/gpu_report.py --dry-run          # tiny shapes on the CPU through the torch backend: tests this script

Scans, all in one run: our fused kernels (`triton`); the `torch` backend; copy, scan, merge as separate steps around our
own scan kernel in raster order (`copy_scan_merge`), which lacks only the fusion; and mamba-ssm's CUDA scan between
the same copy and merge (`mamba_ssm`), if that is installed. delta, B and C are given to the last two in visiting order,
as the projection of copied tokens makes them. Times are medians. `floor` is the time that reading every input and
writing every output once would take at the bandwidth that a large copy reaches on this device.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from visionssm.files import write_whole
from visionssm.ops import selective_scan
from visionssm.scans import get_scan

ROOT = Path(__file__).resolve().parent.parent
SIDES = ('triton', 'torch', 'copy_scan_merge', 'mamba_ssm')
MODELS = (
    ('vmamba_tiny_s1l8', 224, 128),
    ('vim_tiny_patch16_224', 224, 128),
    ('swin_tiny_patch4_window7_224', 224, 128),
    ('deit_tiny_patch16_224', 224, 128),
    ('convnext_tiny', 224, 128),
    ('vim_tiny_patch16_224', 1248, 4),
    ('deit_tiny_patch16_224', 1248, 4),
)
STEPS = (('vmamba_tiny_s1l8', 128), ('vim_small_patch16_224', 128), ('a2mamba_tiny', 128))
DRY_STEPS = (('test_vmamba', 2),)
# goals of the kernels on one H100
SPEEDUP = {1: 2.0, 16: 1.3}
MEMORY_SHARE = 0.5
FLOOR_SHARE, FLOOR_LENGTH = 0.6, 784


class Shape(NamedTuple):
    """One scan of a model."""

    name: str
    batch: int
    height: int
    width: int
    channels: int
    d_state: int
    scan: str = 'cross'
    own_inputs: bool = False  # every direction has its own u, and there is a gate, as in Vim


SHAPES = (
    *(Shape(f'VMamba-T stage {i + 1}, N {n}', 128, s, s, d, n)
      for n in (1, 16) for i, (s, d) in enumerate(((56, 192), (28, 384), (14, 768), (7, 1536)))),
    *(Shape(f'Vim-{size} {side}, batch {batch}', batch, 1, tokens, d, 16, 'bidirectional', True)
      for size, d in (('T', 384), ('S', 768))
      for side, tokens, batch in ((224, 197, 128), (1248, 6085, 1), (1248, 6085, 8))),
    Shape('L 16384, batch 1, N 1', 1, 128, 128, 192, 1),
    Shape('L 16384, batch 1, N 16', 1, 128, 128, 192, 16),
)  # fmt: skip
DRY_SHAPES = (
    Shape('cross', 2, 3, 4, 8, 1),
    Shape('Vim', 1, 1, 7, 8, 4, 'bidirectional', True),
)


def make_inputs(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor | None]:
    """Random inputs of a scan, and its order table."""
    torch.manual_seed(0)
    order = torch.from_numpy(get_scan(shape.scan).table(shape.height, shape.width).copy()).to(device)
    directions, length = order.shape[0], shape.height * shape.width
    tokens = (shape.batch, length)

    def normal(*size, dtype=dtype):
        return torch.randn(size, device=device, dtype=dtype)

    return {
        'u': normal(*tokens, directions, shape.channels) if shape.own_inputs else normal(*tokens, shape.channels),
        'delta': normal(*tokens, directions, shape.channels) - 4,
        'A': -torch.rand(directions, shape.channels, shape.d_state, device=device) - 0.5,
        'B': normal(*tokens, directions, shape.d_state),
        'C': normal(*tokens, directions, shape.d_state),
        'D': normal(directions, shape.channels, dtype=torch.float32),
        'z': normal(*tokens, shape.channels) if shape.own_inputs else None,
        'delta_bias': normal(directions, shape.channels, dtype=torch.float32) * 0.1,
        'order': order,
    }


def in_visiting_order(inputs: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """The same scan with delta, B and C given in the order of visits, made contiguous."""
    index = inputs['order'].long().T[None, :, :, None]  # [1, L, K, 1]
    moved = {name: inputs[name].gather(1, index.expand_as(inputs[name])) for name in ('delta', 'B', 'C')}
    return inputs | moved


def copied_tokens(inputs: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """The copy: u in visiting order, (B, L, K, D), and the index that made it."""
    u, delta = inputs['u'], inputs['delta']
    index = inputs['order'].long().T[None, :, :, None].expand_as(delta)
    return (u if u.ndim == 4 else u.unsqueeze(2).expand_as(delta)).gather(1, index), index


def merged_tokens(y: torch.Tensor, index: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
    """The merge: K outputs in visiting order back to pixel order, summed and gated."""
    out = torch.zeros_like(y).scatter(1, index, y).sum(2)
    return out if z is None else out * torch.nn.functional.silu(z)


def fused(inputs: dict[str, torch.Tensor | None], backend: str) -> torch.Tensor:
    """The public op."""
    rest = {name: x for name, x in inputs.items() if name != 'order'}
    return selective_scan(**rest, delta_softplus=True, order=inputs['order'], backend=backend)


def copy_scan_merge(inputs: dict[str, torch.Tensor | None], backend: str) -> torch.Tensor:
    """Three steps around the op in raster order; `inputs` as from `in_visiting_order`."""
    u, index = copied_tokens(inputs)
    rest = {name: x for name, x in inputs.items() if name not in ('u', 'z', 'order')}
    y = selective_scan(u, **rest, delta_softplus=True, merge=False, backend=backend)
    return merged_tokens(y, index, inputs['z'])


def mamba_ssm(inputs: dict[str, torch.Tensor | None]) -> torch.Tensor:
    """mamba-ssm's CUDA scan between copy and merge; `inputs` as from `in_visiting_order`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, index = copied_tokens(inputs)
    batch, length, directions, channels = inputs['delta'].shape
    flat = [x.flatten(2).transpose(1, 2).contiguous() for x in (u, inputs['delta'])]  # [B, K D, L]
    b, c = (inputs[name].permute(0, 2, 3, 1).contiguous() for name in ('B', 'C'))  # [B, K, N, L]
    rates, skip, bias = (inputs[name].flatten(0, 1) for name in ('A', 'D', 'delta_bias'))
    y = selective_scan_fn(*flat, rates, b, c, skip, None, bias, True)
    return merged_tokens(y.transpose(1, 2).reshape(batch, length, directions, channels), index, inputs['z'])


def sides(inputs: dict[str, torch.Tensor | None], dry: bool) -> dict[str, Callable[[], torch.Tensor] | str]:
    """The contenders: each a function without arguments, or the reason it can't run."""
    moved = in_visiting_order(inputs)
    backend = 'torch' if dry else 'triton'
    found: dict[str, Callable[[], torch.Tensor] | str] = {
        'triton': partial(fused, inputs, backend),
        'torch': partial(fused, inputs, 'torch'),
        'copy_scan_merge': partial(copy_scan_merge, moved, backend),
        'mamba_ssm': partial(mamba_ssm, moved),
    }
    if dry or importlib.util.find_spec('mamba_ssm') is None:
        found['mamba_ssm'] = 'not run without a GPU' if dry else 'mamba-ssm is not installed'
    leaves = [
        x.requires_grad_() for x in (*inputs.values(), *moved.values()) if x is not None and x.is_floating_point()
    ]

    def trained(function: Callable[[], torch.Tensor]) -> torch.Tensor:
        out = function()
        out.backward(torch.ones_like(out))
        for leaf in leaves:
            leaf.grad = None
        return out

    compared: dict[str, Callable[[], torch.Tensor] | str] = {}
    for name, function in found.items():
        compared[name] = function if isinstance(function, str) else torch.no_grad()(function)
        compared[f'{name} training'] = function if isinstance(function, str) else partial(trained, function)
    return compared


def milliseconds(function: Callable[[], object], device: str) -> float:
    """Median time of one call."""
    if device == 'cuda':
        from triton.testing import do_bench

        return do_bench(function, quantiles=[0.5])
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(function: Callable[[], object] | str, device: str) -> dict[str, float | str]:
    """Median milliseconds and peak memory beyond what was held before, or why there are none."""
    if isinstance(function, str):
        return {'skipped': function}
    try:
        function()
        if device != 'cuda':
            return {'ms': milliseconds(function, device)}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        return {'ms': milliseconds(function, device), 'peak_mib': peak}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {'skipped': 'out of memory'}


def bandwidth(device: str) -> float:
    """Bytes per second that a copy of 1 GiB moves, reading and writing."""
    x = torch.empty(2**30 if device == 'cuda' else 2**20, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() / (milliseconds(lambda: y.copy_(x), device) / 1e3)


def scan_rows(shapes, dtype: torch.dtype, device: str, dry: bool) -> list[dict]:
    """One row per shape."""
    rows, rate = [], bandwidth(device)
    for shape in shapes:
        inputs = make_inputs(shape, dtype, device)
        moved = sum(x.numel() * x.element_size() for name, x in inputs.items() if x is not None)
        moved += shape.batch * shape.height * shape.width * shape.channels * inputs['u'].element_size()
        row = {'shape': shape._asdict(), 'dtype': str(dtype).removeprefix('torch.'), 'floor_ms': 1e3 * moved / rate}
        row |= {name: measure(function, device) for name, function in sides(inputs, dry).items()}
        rows.append(row)
        print(scan_line(row), flush=True)
    return rows


def model_rows(models, device: str) -> list[dict]:
    """Images per second and peak memory of whole models, inference and training, autocast to fp16 on a GPU."""
    import timm

    import visionssm  # noqa: F401 (registers the models)

    rows = []
    for name, size, batch in models:
        row = {'model': name, 'size': size, 'batch': batch}
        rows.append(row)
        options = {} if size == 224 else {'img_size': size}  # ConvNeXt takes any size and has no such option
        model = timm.create_model(name, **options).to(device)
        images = torch.randn(batch, 3, size, size, device=device)

        def infer(model=model, images=images):
            with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == 'cuda'):
                return model(images)

        def train(model=model, images=images):
            with torch.autocast(device, torch.float16, enabled=device == 'cuda'):
                loss = model(images).float().square().mean()
            loss.backward()
            model.zero_grad()

        for what, function, prepare in (('inference', infer, model.eval), ('training', train, model.train)):
            prepare()
            row[what] = measure(function, device)
            if 'ms' in row[what]:
                row[what]['images_per_s'] = 1e3 * batch / row[what]['ms']
        print(model_line(row), flush=True)
    return rows


class _Flat:
    """A schedule that leaves the learning rate unchanged."""

    def step_update(self, num_updates: int) -> None:
        """Do nothing."""


def step_rows(models, device: str, dry: bool) -> list[dict]:
    """Images per second and peak memory of an update by the loop of `visionssm train`, in bf16, plain and compiled."""
    import timm

    import visionssm  # noqa: F401 (registers the models)
    from visionssm.train.loop import fit

    rows = []
    for name, batch in models:
        for compiled in (False,) if dry else (False, True):
            torch.compiler.reset()
            model = timm.create_model(name).to(device)
            size = model.pretrained_cfg['input_size'][-1]
            images = torch.randn(batch, 3, size, size, device=device)
            labels = torch.randint(1000, (batch,), device=device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            forward = torch.compile(model) if compiled else model

            def loss_fn(forward, images, labels):
                with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
                    return torch.nn.functional.cross_entropy(forward(images), labels)

            step = partial(
                fit,
                model,
                lambda epoch, first, batch=(images, labels): [batch],
                loss_fn,
                optimizer,
                _Flat(),
                None,
                epochs=1,
                forward=forward,
                clip_grad=5.0,
            )
            row = {'model': name, 'size': size, 'batch': batch, 'compiled': compiled}
            try:
                row['step'] = measure(step, device)
            except RuntimeError as error:  # what the compiler can't do is a result, too
                row['step'] = {'skipped': f'{type(error).__name__}: {str(error).splitlines()[0]}'}
            if 'ms' in row['step']:
                row['step']['images_per_s'] = 1e3 * batch / row['step']['ms']
            rows.append(row)
            print(step_line(row), flush=True)
    return rows


def step_line(row: dict) -> str:
    """An update as a row of the table."""
    cells = [f'{row["model"]} at {row["size"]}', str(row['batch']), 'compiled' if row['compiled'] else 'plain']
    return '| ' + ' | '.join(cells + [_cell(row['step'], key) for key in ('images_per_s', 'ms', 'peak_mib')]) + ' |'


def goals(rows: list[dict]) -> list[str]:
    """Which goals each shape meets."""
    lines = []
    for row in rows:
        ours, theirs = row['triton training'], row['copy_scan_merge training']
        shape = row['shape']
        if 'ms' not in ours or 'ms' not in theirs or shape['d_state'] not in SPEEDUP:
            continue
        speedup, wanted = theirs['ms'] / ours['ms'], SPEEDUP[shape['d_state']]
        checks = {f'speed {speedup:.2f}x of {wanted}x': speedup >= wanted}
        if 'peak_mib' in ours:
            share = ours['peak_mib'] / theirs['peak_mib']
            checks[f'memory {share:.2f} of {MEMORY_SHARE}'] = share <= MEMORY_SHARE
        if shape['d_state'] == 1 and shape['height'] * shape['width'] >= FLOOR_LENGTH:
            share = row['floor_ms'] / row['triton']['ms']
            checks[f'floor {share:.0%} of {FLOOR_SHARE:.0%}'] = share >= FLOOR_SHARE
        judged = (f'{"met" if met else "NOT met"}: {text}' for text, met in checks.items())
        lines.append(f'- {shape["name"]}: ' + '; '.join(judged))
    return lines


def _cell(entry: dict, key: str = 'ms') -> str:
    return f'{entry[key]:.3g}' if key in entry else entry.get('skipped', '')


def scan_line(row: dict) -> str:
    """A scan as a row of the table."""
    cells = [row['shape']['name'], row['dtype'], f'{row["floor_ms"]:.3g}']
    cells += [_cell(row[side]) for side in SIDES] + [_cell(row[f'{side} training']) for side in SIDES]
    cells += [_cell(row[f'{side} training'], 'peak_mib') for side in ('triton', 'copy_scan_merge')]
    return '| ' + ' | '.join(cells) + ' |'


def model_line(row: dict) -> str:
    """A model as a row of the table."""
    cells = [f'{row["model"]} at {row["size"]}', str(row['batch'])]
    cells += [_cell(row[what], key) for what in ('inference', 'training') for key in ('images_per_s', 'peak_mib')]
    return '| ' + ' | '.join(cells) + ' |'


def environment(device: str) -> dict[str, str]:
    """What was measured on and with."""
    found = {'device': torch.cuda.get_device_name() if device == 'cuda' else f'cpu ({platform.machine()})'}
    for package in ('torch', 'triton', 'timm', 'mamba-ssm'):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = 'not installed'
    return found | {'python': platform.python_version(), 'cuda': str(torch.version.cuda or torch.version.hip)}


def markdown(report: dict) -> str:
    """The report to read."""
    lines = ['# GPU report' if not report['dry_run'] else '# Dry run on the CPU: these are not GPU figures', '']
    lines += [f'- {name}: {value}' for name, value in report['environment'].items()]
    for name, result in report['checks'].items():
        lines.append(f'- {name}: exit code {result["code"]}, {result["last_line"]}')
    columns = [*SIDES, *(f'{side}, training' for side in SIDES), 'peak MiB triton', 'peak MiB copy_scan_merge']
    lines += ['', '## Scans: median ms forward, and forward with backward', '']
    lines += ['| scan | dtype | floor | ' + ' | '.join(columns) + ' |', '|' + '---|' * (3 + len(columns))]
    lines += [scan_line(row) for row in report['scans']]
    lines += ['', '## Goals', '', *(goals(report['scans']) or ['- none could be judged'])]
    lines += ['', '## Models', '', '| model | batch | inference images/s | peak MiB | training images/s | peak MiB |']
    lines += ['|---|---|---|---|---|---|', *(model_line(row) for row in report['models'])]
    lines += ['', '## Updates of `visionssm train`: forward, backward, clipping, AdamW; bf16', '']
    lines += ['| model | batch | | images/s | ms | peak MiB beyond weights and states |', '|---|---|---|---|---|---|']
    lines += [step_line(row) for row in report['steps']]
    return '\n'.join(lines) + '\n'


def run_check(command: list[str]) -> dict[str, int | str]:
    """Exit code and last line of a command."""
    done = subprocess.run([sys.executable, '-m', *command], cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {'code': done.returncode, 'last_line': lines[-1] if lines else ''}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'runs', help='folder of gpu_report.json and gpu_report.md')
    parser.add_argument('--dtype', choices=('float16', 'bfloat16', 'float32'), default='float16')
    parser.add_argument('--skip-tests', action='store_true', help='no tests and no selfcheck')
    parser.add_argument('--dry-run', action='store_true', help='tiny shapes on the CPU through the torch backend')
    args = parser.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            'gpu_report: no GPU here (torch.cuda.is_available() is False); --dry-run tests the script', file=sys.stderr
        )
        return 2
    device = 'cpu' if args.dry_run else 'cuda'
    dtype = torch.float32 if args.dry_run else getattr(torch, args.dtype)
    checks = {}
    if not args.dry_run and not args.skip_tests:
        checks['tests'] = run_check(['pytest', 'tests/kernels', 'tests/ops'])
        checks['selfcheck'] = run_check(['visionssm', 'selfcheck', '--device', device])
    report = {
        'dry_run': args.dry_run,
        'environment': environment(device),
        'checks': checks,
        'scans': scan_rows(DRY_SHAPES if args.dry_run else SHAPES, dtype, device, args.dry_run),
        'models': [] if args.dry_run else model_rows(MODELS, device),
        'steps': step_rows(DRY_STEPS if args.dry_run else STEPS, device, args.dry_run),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / 'gpu_report.json', json.dumps(report, indent=2) + '\n')
    write_whole(args.out / 'gpu_report.md', markdown(report))
    print(f'wrote {args.out / "gpu_report.json"} and gpu_report.md')
    return 1 if any(check['code'] for check in checks.values()) else 0


if __name__ == '__main__':
    sys.exit(main())
