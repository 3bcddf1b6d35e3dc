"""What quantising costs: accuracy, error per layer, size and speed of models that were trained on the digits.

visionssm train --config configs/train/digits.yaml --model NAME --set img_size=64 ... --output runs/NAME
python tools/quantization.py runs/NAME ... --onnx --json results/quantization_cpu.json
python tools/quantization.py --sizes vim_tiny_patch16_224 ...      # of files alone, new models

Accuracy is that on the 360 digits that training held out, as they are and under Gaussian noise, drawn anew several
times; ranges come from 64 training digits, half of them under the same noise. Speed is processor time of one thread,
so that other programs on the machine count for less; all sides in turn, medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from timm.data import create_transform
from torch import Tensor, nn

from visionssm.apps import quantize
from visionssm.apps.classify import data_config
from visionssm.apps.export import export_model
from visionssm.apps.rewrites import Peak, rewrite
from visionssm.layers import split_projections
from visionssm.train.data import DigitsSource
from visionssm.weights.quantized import check_torchao

CALIBRATION, BATCH, ROUNDS = 64, 60, 5
NOISE, DRAWS = (0.5, 0.75), 4  # standard deviation, of the range of pixels
NAIVE = {'naive-w8a8': 8, 'naive-w4a8': 4}
METHODS = ('int8-weight', 'int8-dynamic', 'mambaquant-w8a8', 'mambaquant-w4a8')
_VNNI = ('avx512_vnni', 'avx_vnni', 'amx_int8')


def load(folder: str | Path) -> nn.Module:
    """A trained model."""
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval().requires_grad_(False)


def digits(model: nn.Module, training: bool) -> tuple[Tensor, Tensor]:
    """Images as the model takes them, and labels."""
    config = data_config(model)
    source, transform = DigitsSource(training, config['input_size'][0]), create_transform(**config, is_training=False)
    return torch.stack([transform(source.read(i)[0]) for i in range(len(source))]), torch.tensor(source.labels)


def with_noise(model: nn.Module, images: Tensor, deviation: float, seed: int) -> Tensor:
    """Images as the model takes them under noise, which is not clipped."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + deviation / torch.tensor(data_config(model)['std']).view(-1, 1, 1) * noise


def naive(model: nn.Module, bits: int, batches: Sequence[Tensor]) -> nn.Module:
    """Every linear layer as it is: a scale per output channel, inputs with one range from least to largest."""
    split_projections(model)
    layers = {name: m for name, m in model.named_modules() if quantize.is_quantizable(m)}
    ranges = quantize.input_ranges(layers.values(), model, batches, percentile=100)
    for name, layer in layers.items():
        quantize.quantize_linear(model, name, bits, ranges.get(layer))
    return model


def outputs_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What every linear layer gives."""
    seen: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, out.flatten().double()))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


def signal_to_noise(expected: Tensor, found: Tensor) -> float:
    """In decibels."""
    return (10 * torch.log10(expected.square().sum() / (found - expected).square().sum())).item()


def layer_errors(expected: nn.Module, found: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Signal to noise and cosine of every linear layer's outputs, each model on its own inputs."""
    sides = outputs_of(expected, images), outputs_of(found, images)
    return {
        name: {
            'sqnr_db': round(signal_to_noise(x, sides[1][name]), 2),
            'cosine': round(torch.cosine_similarity(x, sides[1][name], dim=0).item(), 6),
        }
        for name, x in sides[0].items()
    }


def onnx_int8(model: nn.Module, batches: Sequence[Tensor], work: Path) -> tuple[Path, Path]:
    """The exported graph, and its products and convolutions in 8 bits by onnxruntime: static, per output channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.left, None)
            return None if images is None else {'images': images.numpy()}

    plain, prepared, out = work / 'model.onnx', work / 'prepared.onnx', work / 'int8.onnx'
    export_model(copy.deepcopy(model), plain, 'onnx', tuple(batches[0].shape[1:]))
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(out), Reader(), per_channel=True, op_types_to_quantize=['MatMul', 'Gemm', 'Conv'],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return plain, out


def session_of(file: Path) -> Callable[[Tensor], Tensor]:
    """What runs an ONNX file on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


def calibration_digits(model: nn.Module) -> list[Tensor]:
    """Batches of training digits, half of them under noise."""
    training, _ = digits(model, True)
    sample = training[:: len(training) // CALIBRATION][:CALIBRATION]
    noisy = [with_noise(model, sample[1 + 2 * i :: 4], x, i) for i, x in enumerate(NOISE)]
    return [x for part in (sample[::2], *noisy) for x in part.split(32)]


def seconds_of(sides: dict[str, Callable[[Tensor], Tensor]], images: Tensor) -> dict[str, float]:
    """Processor time of each: all in turn, medians."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, run in sides.items():
            start = time.process_time()
            run(images)
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def compiled(folder: str, work: Path) -> dict[str, Any]:
    """Images per second, eager and by `torch.compile`, of the model and of folders that were written and read again."""
    sides: dict[str, Callable[[Tensor], Tensor]] = {'fp32': load(folder)}
    images, equal, noise = digits(sides['fp32'], False)[0][:32], {}, {}
    model_args = json.loads((Path(folder) / 'config.json').read_text())['model_args']
    for method in ('int8-dynamic', 'mambaquant-w8a8'):
        batches = calibration_digits(sides['fp32']) if 'mamba' in method else ()
        done = quantize.quantize_model(load(folder), method, batches)
        quantize.write_quantized(done, work / method, model_args, {'method': method})
        sides[method] = load(work / method)
        exported = torch.export.export(sides[method], (images,)).module()
        equal[method] = torch.equal(sides[method](images), exported(images))
    for name, model in list(sides.items()):
        sides[f'{name}-compiled'] = torch.compile(model)
        noise[name] = round(signal_to_noise(model(images), sides[f'{name}-compiled'](images)), 1)
    speeds = {name: round(len(images) / seconds, 1) for name, seconds in seconds_of(sides, images).items()}
    row = {'images_per_cpu_second': speeds, 'exported_equals_eager': equal, 'compiled_sqnr_db': noise}
    print(Path(folder).name, row, flush=True)
    return row


def measure(folder: str, work: Path, onnx: bool) -> dict[str, Any]:
    """Everything of one model; with `onnx` also of the exported graph."""
    plain = load(folder)
    (images, labels), batches = digits(plain, False), calibration_digits(plain)
    size = os.path.getsize(Path(folder) / 'model.safetensors')
    sides: dict[str, Callable[[Tensor], Tensor]] = {'fp32': plain}
    sizes, layers, notes = {'fp32': size}, {}, {}
    model_args = json.loads((Path(folder) / 'config.json').read_text())['model_args']
    split, rewritten = load(folder), load(folder)
    split_projections(split)
    split_projections(rewritten)
    rewrite(rewritten, batches)
    for name, bits in NAIVE.items():
        sides[name] = naive(load(folder), bits, batches)
        layers[name] = layer_errors(split, sides[name], images[:BATCH])
    for method in METHODS:
        done = quantize.quantize_model(load(folder), method, batches if 'mamba' in method else ())
        quantize.write_quantized(done, work / method, model_args, {'method': method})
        sides[method], sizes[method] = done.model, os.path.getsize(work / method / 'model.safetensors')
        layers[method] = layer_errors(rewritten if done.prepared.peaks else split, done.model, images[:BATCH])
        if done.prepared.peaks:
            notes = {'notes': done.prepared.notes, 'peaks': [peak._asdict() for peak in done.prepared.peaks]}
    files = onnx_int8(plain, batches, work) if onnx else ()
    for name, file in zip(('onnxruntime-fp32', 'onnxruntime-int8'), files, strict=False):
        sides[name], sizes[name] = session_of(file), os.path.getsize(file)

    def logits_of(images: Tensor) -> dict[str, Tensor]:
        return {name: torch.cat([run(x) for x in images.split(BATCH)]) for name, run in sides.items()}

    logits = logits_of(images)
    noisy = {x: logits_of(torch.cat([with_noise(plain, images, x, 100 + i) for i in range(DRAWS)])) for x in NOISE}
    seconds = seconds_of(sides, images[:32])
    rows = []
    for name, found in logits.items():
        right = int((found.argmax(1) == labels).sum())
        row = {'method': name, 'right': right, 'accuracy': round(100 * right / len(labels), 2)}
        for deviation, seen in noisy.items():
            right = (seen[name].argmax(1) == labels.repeat(DRAWS)).double().mean().item()
            row[f'accuracy_noise_{deviation}'] = round(100 * right, 2)
        if name != 'fp32':
            row['logits_sqnr_db'] = round(signal_to_noise(logits['fp32'], found), 2)
        if name in sizes:
            row |= {'bytes': sizes[name], 'times_smaller': round(size / sizes[name], 2)}
        row['images_per_cpu_second'] = round(32 / seconds[name], 1)
        rows.append(row)
        print(f'{Path(folder).name:16}', *(f'{key} {value}' for key, value in row.items()), flush=True)
    recipe = yaml.safe_load((Path(folder) / 'recipe.yaml').read_text())
    kept = {key: recipe[key] for key in ('model', 'model_args', 'img_size', 'epochs', 'batch_size', 'lr', 'seed')}
    return {
        'recipe': kept,
        'parameters': sum(x.numel() for x in plain.parameters()),
        'scored': len(labels),
        'draws_of_noise': DRAWS,
        'rows': rows,
        'layers': layers,
        **notes,
    }


def size_of(name: str, work: Path) -> dict[str, Any]:
    """Bytes of the file of a new model, in fp32 and quantised."""
    row: dict[str, Any] = {'model': name, 'fp32': 4 * sum(x.numel() for x in timm.create_model(name).parameters())}
    images = work / 'noise'
    for method in METHODS:
        out = work / 'out'
        quantize.quantize(name, method, out, images if 'mamba' in method else None, images=1, random=True)
        found = os.path.getsize(out / 'model.safetensors')
        row[method], row[f'{method}_times_smaller'] = found, round(row['fp32'] / found, 2)
    print(row, flush=True)
    return row


def machine() -> dict[str, Any]:
    """Where this ran."""
    import onnxruntime
    import torchao

    text = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    model = next((line.partition(': ')[2] for line in text.splitlines() if line.startswith('model name')), '')
    return {
        'cpu': model or platform.processor(),
        'integer_products': [flag for flag in _VNNI if f' {flag} ' in f'{text} '],
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchao': torchao.__version__,
        'timm': timm.__version__,
        'onnxruntime': onnxruntime.__version__,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='*', metavar='FOLDER', help='as visionssm train wrote it')
    parser.add_argument('--sizes', nargs='*', default=[], metavar='MODEL', help='new models whose files are measured')
    parser.add_argument('--onnx', action='store_true', help="also onnxruntime's int8 of the exported graph")
    parser.add_argument('--compile', action='store_true', help='only how fast torch.compile makes them')
    parser.add_argument('--json', type=Path, metavar='FILE', help='results; what is there of other models stays')
    parser.add_argument('--picture', nargs=2, metavar=('NAME', 'FILE'), help='how far inputs of a measured model reach')
    args = parser.parse_args()
    check_torchao()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = json.loads(args.json.read_text()) if args.json and args.json.exists() else {'models': {}, 'sizes': {}}
    if args.folders or args.sizes:
        result['machine'] = machine()
    with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
        for i, folder in enumerate(args.folders):
            work = Path(temporary, str(i))
            work.mkdir()
            name = Path(folder).name
            if args.compile:
                result.setdefault('compiled', {})[name] = compiled(folder, work)
            else:
                result['models'][name] = measure(folder, work, args.onnx)
        if args.sizes:
            from PIL import Image

            (Path(temporary) / 'noise').mkdir()
            Image.effect_noise((224, 224), 64).convert('RGB').save(Path(temporary) / 'noise' / '0.png')
        for name in args.sizes:
            result['sizes'][name] = size_of(name, Path(temporary))
    if args.picture:
        name, file = args.picture
        quantize.draw_peaks([Peak(**peak) for peak in result['models'][name]['peaks']], Path(file))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
