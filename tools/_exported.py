"""An exported model beside the model itself: every runtime in a process of its own, which this file is, too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _worker import CLOCKS, Worker

RUNTIMES = ('eager', 'onnxruntime', 'openvino')
EXPORTED_MODELS = ('vmamba_tiny_s1l8', 'vim_tiny_patch16_224')
CASES = ('1@224', '8@224', '1@448')  # batch and side


def bench_exported(name: str, case: str, file: Path, threads: int, rounds: int, clock: str) -> list[dict]:
    """Median time and memory of `file` in every runtime, and of the model in eager mode, all taking turns."""
    from visionssm.compare.cost import interleaved_medians

    batch, side = map(int, case.split('@'))
    workers = {r: Worker(__file__, r, name, file, batch, side, threads, clock) for r in RUNTIMES}
    sides = {runtime: (partial(worker.ask, run=True), rounds) for runtime, worker in workers.items()}
    medians = interleaved_medians(sides)
    rows = []
    for runtime, worker in workers.items():
        row = {'model': name, 'runtime': runtime, 'batch': batch, 'side': side, 'threads': threads}
        row |= {'ms': 1e3 * medians[runtime], **worker.ask(memory=True)}
        row['over_eager'] = medians[runtime] / medians['eager']
        print(
            '{model:22} {batch} x {side}² {runtime:12} {ms:9.1f} ms ({over_eager:.2f} x eager), process '
            '{peak_mib:.0f} MiB, grown by {growth_mib:.0f} MiB'.format(**row),
            flush=True,
        )
        rows.append(row)
        worker.close()
    return rows


def _eager(name: str, side: int, threads: int) -> Callable:
    import timm
    import torch

    import visionssm.models  # noqa: F401 - registers the models

    torch.set_num_threads(threads)
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    model = timm.create_model(name, **({'img_size': side} if fixed else {})).eval()

    def run(images):
        with torch.inference_mode():
            return model(torch.from_numpy(images))

    return run


def _onnxruntime(file: str, shape: tuple[int, ...], threads: int) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {'images': images})


def _openvino(file: str, shape: tuple[int, ...], threads: int) -> Callable:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({'images': list(shape)})  # loops over tensors of any size take up to twice as long
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    return core.compile_model(model, 'CPU', options)


def _serve(runtime: str, name: str, file: str, batch: int, side: int, threads: int, clock: Callable) -> None:
    import numpy as np

    shape = batch, 3, side, side
    run = _eager(name, side, threads) if runtime == 'eager' else globals()[f'_{runtime}'](file, shape, threads)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    before = _resident_mib()
    for line in sys.stdin:
        if 'memory' in json.loads(line):
            peak = _resident_mib('VmHWM')  # ru_maxrss counts the process that this one was forked from
            print(json.dumps({'peak_mib': peak, 'growth_mib': peak - before}), flush=True)
            continue
        start = clock()
        run(images)
        print(clock() - start, flush=True)


def _resident_mib(field: str = 'VmRSS') -> float:
    return next(int(x.split()[1]) for x in Path('/proc/self/status').read_text().splitlines() if field in x) / 1024


if __name__ == '__main__':
    _serve(*sys.argv[1:4], *map(int, sys.argv[4:7]), CLOCKS[sys.argv[7]])
