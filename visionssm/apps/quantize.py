"""Models with 8-bit and 4-bit weights, as folders that timm loads."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models import load_model_config_from_hf
from torch import Tensor, nn

from visionssm.catalog.models import is_ours, takes_argument
from visionssm.extras import check_extra
from visionssm.files import check_replaceable, read_object, replaced_folder
from visionssm.hub.folder import write_model
from visionssm.layers import split_projections
from visionssm.weights.quantized import LEAST_ROW, check_torchao, flatten, is_quantized, round_rows

from .classify import data_config, load_classifier, load_untrained, read_image
from .features import image_files
from .rewrites import Peak, ScaledLinear, effective_input, peaks, rewrite, watch_inputs

FILES = ('config.json', 'model.safetensors', 'peaks.csv', 'peaks.png')
PERCENTILE = 99.99
_FOLDER, _HUB = 'local-dir:', 'hf-hub:'
_ROUNDING = 2.0**-10  # of the largest value of a tensor, that half precision may cost


class Preparation(NamedTuple):
    """What was done to a model before it was quantised.

    Attributes:
        notes: What was rewritten, and what could not be.
        peaks: How far the inputs of linear layers reach, before and after.
    """

    notes: tuple[str, ...] = ()
    peaks: tuple[Peak, ...] = ()


class Method(NamedTuple):
    """A way to quantise a model.

    Attributes:
        calibrated: Whether it looks at images.
        quantize: Takes the model, which it changes, and batches of images.
    """

    calibrated: bool
    quantize: Callable[[nn.Module, Sequence[Tensor]], Preparation]


class Quantized(NamedTuple):
    """What was done.

    Attributes:
        model: In evaluation mode, on the CPU.
        layers: Quantised linear layers.
        weights: Share of the model's numbers that they hold.
        prepared: What was done before.
    """

    model: nn.Module
    layers: int
    weights: float
    prepared: Preparation


def check_request(method: str, output: str | os.PathLike[str], calibration: str | os.PathLike[str] | None) -> None:
    """Reject what cannot be done before any work begins.

    Raises:
        ValueError: If there is no such method, it needs images and none are given, or takes none, or the folder can't
            be written or holds something else.
        MissingExtraError: If torchao is missing or too old.
    """
    if method not in METHODS:
        raise ValueError(f'method is {method!r}; allowed are {", ".join(METHODS)}')
    if METHODS[method].calibrated and calibration is None:
        raise ValueError(f'{method} needs calibration images; give a folder of training images')
    if not METHODS[method].calibrated and calibration is not None:
        raise ValueError(f'{method} takes no calibration images')
    check_torchao()
    if METHODS[method].calibrated:
        check_extra('the picture of ranges', 'quantize', 'matplotlib')
    output = Path(output)
    check_replaceable(output, FILES, 'quantisation')
    config = output / 'config.json'
    if config.is_file() and 'quantization' not in read_object(config):
        raise ValueError(f'{output} holds a model that no quantisation wrote; give another folder')


def calibration_batches(
    model: nn.Module, folder: str | os.PathLike[str], images: int = 128, img_size: int | None = None, batch: int = 32
) -> list[Tensor]:
    """Images as the model takes them, spread evenly over those in a folder and its subfolders.

    Args:
        model: With a `pretrained_cfg`.
        folder: Of training images: those that a model is scored on would flatter it.
        images: How many to take at most.
        img_size: Side of the images; None: the model's own.
        batch: Images per batch.

    Raises:
        ValueError: If there are no images, or a file is not an image.
        FileNotFoundError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'no folder of calibration images at {folder}')
    files = image_files([folder])
    files = files[:: -(-len(files) // images)]
    config = data_config(model, img_size)
    transform = create_transform(**config, is_training=False)
    pixels = torch.stack([transform(read_image(file, config['input_size'][0])) for file in files])
    return list(pixels.split(batch))


def quantize_model(model: nn.Module, method: str, batches: Sequence[Tensor] = ()) -> Quantized:
    """Quantise the linear layers of a model.

    Projections that a scan stacks for all directions become linear layers first. What stays in floating point is
    computed in fp32, but rounded: weights of convolutions to 8 bits, a scale per output channel; other parameters, and
    buffers of two axes or more, to half precision.

    Args:
        model: Of this package, in fp32 on the CPU; it is changed.
        method: One of `METHODS`: int8-weight: 8-bit weights, a scale per output channel; int8-dynamic: also 8-bit
            inputs, a scale per token. Both are torchao's. mambaquant-w8a8 and mambaquant-w4a8: the model is rewritten
            by `visionssm.apps.rewrites`, then gets 8-bit or 4-bit weights, and 8-bit inputs of one range each, found
            on the images; what out_proj reads has a scale per token.
        batches: Images, (B, C, H, W), for methods that are calibrated.

    Raises:
        ValueError: If there is no such method, it needs images, or the model is not of this package.
        MissingExtraError: If torchao is missing or too old.
    """
    if method not in METHODS:
        raise ValueError(f'method is {method!r}; allowed are {", ".join(METHODS)}')
    if METHODS[method].calibrated and not batches:
        raise ValueError(f'{method} needs calibration images')
    check_torchao()
    name = model.pretrained_cfg['architecture']
    if not is_ours(name):
        raise ValueError(f"{name} is timm's own; quantised weights load into models of this package alone")
    if any(is_quantized(x) for x in model.parameters()):
        raise ValueError(f'{name} is quantised already')
    model = model.eval().requires_grad_(False)
    split_projections(model)
    with torch.no_grad():
        prepared = METHODS[method].quantize(model, batches)
        _round_rest(model)
    quantized = [x.numel() for x in model.parameters() if is_quantized(x)]
    if not quantized:
        raise ValueError(f'{name} has no linear layers to quantise')
    return Quantized(model, len(quantized), sum(quantized) / sum(x.numel() for x in model.parameters()), prepared)


def _round_rest(model: nn.Module) -> None:
    """Round what is not quantised to what a file holds in fewer bytes."""
    kernels = {m.weight for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)}
    for x in (*model.parameters(), *(x for x in model.buffers() if x.ndim > 1)):
        if is_quantized(x) or x.dtype != torch.float32:
            continue
        if x in kernels and x[0].numel() >= LEAST_ROW:
            x.copy_(round_rows(x))
            continue
        half = x.half().float()
        if (half - x).abs().max() <= _ROUNDING * x.abs().max():
            x.copy_(half)


def quantize(
    name: str,
    method: str,
    output: str | os.PathLike[str],
    calibration: str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
    img_size: int | None = None,
    images: int = 128,
    random: bool = False,
) -> Quantized:
    """Quantise a model and write it as a folder, which appears at the end, whole or not at all.

    `timm.create_model('local-dir:FOLDER', pretrained=True)` loads it wherever torchao is installed.

    Args:
        name: Registered name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        method: As of `quantize_model`.
        output: The folder; an earlier one of this function is replaced.
        calibration: Folder of training images, for methods that need them.
        checkpoint: File of weights for a registered model.
        img_size: Side of the images; None: the model's own.
        images: Calibration images to take at most.
        random: Take a new model without trained weights.

    Raises:
        ValueError: If something is not allowed, can't be read, or is not a model of this package.
        OSError: If there is no such file or folder, or the folder can't be written.
        MissingExtraError: If torchao is missing or too old.
    """
    check_request(method, output, calibration)
    if random and checkpoint is not None:
        raise ValueError('random and checkpoint exclude each other')
    model = load_untrained(name, img_size) if random else load_classifier(name, checkpoint, img_size)
    batches = [] if calibration is None else calibration_batches(model, calibration, images, img_size)
    done = quantize_model(model, method, batches)
    about = {'method': method, 'torchao': _torchao_version(), 'calibration_images': sum(map(len, batches))}
    write_quantized(done, Path(output), _stored_args(name, img_size, model), about)
    return done


def _torchao_version() -> str:
    import torchao

    return torchao.__version__


def _stored_args(name: str, img_size: int | None, model: nn.Module) -> dict[str, Any]:
    """Arguments that the model was made with."""
    if name.startswith(_FOLDER):
        return read_object(Path(name.removeprefix(_FOLDER)) / 'config.json').get('model_args') or {}
    if name.startswith(_HUB):
        return load_model_config_from_hf(name.removeprefix(_HUB))[2] or {}
    return {'img_size': img_size} if img_size is not None and takes_argument(model, 'img_size') else {}


def write_quantized(done: Quantized, folder: Path, model_args: dict[str, Any], about: dict[str, Any]) -> None:
    """Write `config.json` and `model.safetensors`, read them back, and only then put the folder in its place.

    With them go `peaks.csv` and `peaks.png` of a model that was rewritten.

    Args:
        done: As `quantize_model` returns it.
        folder: Where to; what is there is replaced.
        model_args: Arguments that the model was made with.
        about: What `config.json` says under `quantization`.

    Raises:
        ValueError: If what was read back is not the model.
        OSError: If it can't be written.
    """
    model = done.model
    config = model.pretrained_cfg
    labels = {key: config[key] for key in ('label_names', 'label_descriptions') if config.get(key)}
    weights, metadata = flatten(model.state_dict())
    with replaced_folder(folder) as new:
        plain = timm.create_model(config['architecture'], **{**model_args, 'num_classes': model.num_classes})
        plain.pretrained_cfg.update(config)
        write_model(plain, new, {**labels, 'quantization': about}, model_args)
        save_file(weights, new / 'model.safetensors', metadata)
        loaded = timm.create_model(f'local-dir:{new}', pretrained=True).eval()
        found = flatten(loaded.state_dict())[0]
        if found.keys() != weights.keys() or not all(torch.equal(x, found[name]) for name, x in weights.items()):
            raise ValueError('the model read back is not the one that was written: nothing was written')
        if done.prepared.peaks:
            _write_peaks(done.prepared.peaks, new)


def _write_peaks(peaks: Sequence[Peak], folder: Path) -> None:
    with (folder / 'peaks.csv').open('w', newline='', encoding='utf-8') as stream:
        table = csv.writer(stream)
        table.writerow(Peak._fields)
        table.writerows((name, f'{before:.2f}', f'{after:.2f}') for name, before, after in peaks)
    draw_peaks(peaks, folder / 'peaks.png')


def draw_peaks(peaks: Sequence[Peak], file: Path) -> None:
    """A picture of how far the inputs of linear layers reach, before and after a model was rewritten."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout='constrained')
    axes = figure.subplots()
    for values, label in (([x.before for x in peaks], 'before'), ([x.after for x in peaks], 'after')):
        axes.plot(range(len(peaks)), values, '.-', label=label)
    axes.set(xlabel='linear layer, in the order of calls', ylabel='largest input / standard deviation')
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file)


def is_quantizable(module: nn.Module, name: str = '') -> bool:
    """Whether a layer is quantised; torchao finds no scales for rows of one weight."""
    return isinstance(module, nn.Linear) and module.in_features > 1


class InputRange(NamedTuple):
    """What a layer's inputs reach.

    Attributes:
        low: At most 0.
        high: At least 0.
        ndim: Axes of the input.
    """

    low: float
    high: float
    ndim: int


def input_ranges(
    layers: Iterable[nn.Module], model: nn.Module, batches: Sequence[Tensor], percentile: float = PERCENTILE
) -> dict[nn.Module, InputRange]:
    """Percentiles of the inputs of layers, the mean over batches.

    Args:
        layers: Of `model`; what is never called with inputs of one number of axes is left out.
        model: In evaluation mode.
        batches: Images.
        percentile: Share of the values, in percent, at each end between which the range lies; 100: all.
    """
    seen: dict[nn.Module, list[InputRange]] = {}

    def see(layer: nn.Module, x: Tensor) -> None:
        values = effective_input(layer, x).flatten().sort()[0]
        cut = int(len(values) * (100 - percentile) / 100)
        found = InputRange(min(values[cut].item(), 0.0), max(values[-1 - cut].item(), 0.0), x.ndim)
        seen.setdefault(layer, []).append(found)

    with watch_inputs(layers, see), torch.no_grad():
        for images in batches:
            model(images)
    return {
        layer: InputRange(*(sum(values) / len(found) for values in list(zip(*found, strict=True))[:2]), found[0].ndim)
        for layer, found in seen.items()
        if len({one.ndim for one in found}) == 1
    }


def quantize_linear(model: nn.Module, name: str, bits: int, static: InputRange | None) -> None:
    """Quantise one linear layer: a scale per output channel, 8-bit inputs.

    Args:
        model: Changed in place.
        name: Of the layer in it.
        bits: Of the weights, 8 or 4, which is computed as 8.
        static: Range of the input, which is the same for all tokens; None: a scale per token, found as it runs.
    """
    from torchao.quantization import Int8Tensor, MappingType, PerRow, PerTensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    layer = model.get_submodule(name)
    weight = layer.weight.detach()
    scaled = isinstance(layer, ScaledLinear)
    inputs: dict[str, Any] = {'act_quant_kwargs': QuantizeTensorToInt8Kwargs(PerRow())}
    if static is not None:
        scale = max((static.high - static.low) / 255, 1e-12)
        shape = [1] * static.ndim
        inputs = {
            'act_quant_kwargs': QuantizeTensorToInt8Kwargs(PerTensor(), MappingType.ASYMMETRIC),
            'act_quant_scale': torch.full(shape, scale),
            'act_quant_zero_point': torch.full(shape, round(-128 - static.low / scale), dtype=torch.int8),
        }
    if scaled:
        inputs['act_pre_scale'] = layer.input_scale
    scale = weight_scales(weight, bits)
    quantized = Int8Tensor.from_hp(weight, PerRow(), scale=scale, **inputs)
    if scaled:
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device='meta')
        plain.bias = layer.bias
        model.set_submodule(name, plain.eval())
        layer = plain
    layer.weight = nn.Parameter(quantized, requires_grad=False)


def weight_scales(weight: Tensor, bits: int) -> Tensor:
    """One scale per row, (out, 1): that by which its largest value becomes the largest integer."""
    return (weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=1e-12)


def _int8_weight(model: nn.Module, batches: Sequence[Tensor]) -> Preparation:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), is_quantizable)
    return Preparation()


def _int8_dynamic(model: nn.Module, batches: Sequence[Tensor]) -> Preparation:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False), is_quantizable)
    return Preparation()


def _mambaquant(model: nn.Module, batches: Sequence[Tensor], bits: int) -> Preparation:
    before = peaks(model, batches)
    notes = rewrite(model, batches)
    reached = [Peak(name, before[name], after) for name, after in peaks(model, batches).items()]
    layers = {name: m for name, m in model.named_modules() if is_quantizable(m)}
    ranges = input_ranges(layers.values(), model, batches)
    for name, layer in layers.items():
        # what the scan gives has tokens of very different size
        static = None if name.rpartition('.')[2] == 'out_proj' else ranges.get(layer)
        quantize_linear(model, name, bits, static)
    return Preparation(tuple(notes), tuple(reached))


METHODS = {
    'int8-weight': Method(False, _int8_weight),
    'int8-dynamic': Method(False, _int8_dynamic),
    'mambaquant-w8a8': Method(True, partial(_mambaquant, bits=8)),
    'mambaquant-w4a8': Method(True, partial(_mambaquant, bits=4)),
}
