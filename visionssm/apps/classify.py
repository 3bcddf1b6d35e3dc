"""Load a classifier from anywhere and run it on image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageOps
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from timm.models import is_model
from torch import nn

from visionssm.catalog.models import check_model, is_ours, sketch, takes_argument
from visionssm.extras import MissingExtraError
from visionssm.files import read_object
from visionssm.models.bounds import check_size
from visionssm.weights.checkpoint import load_checkpoint
from visionssm.weights.download import weights_file
from visionssm.weights.locate import by_hand_only

_LARGEST_SIDE = 4096  # to which a configuration may have images resized
_LARGEST_ASKED = 1 << 14  # where the caller gives it: images of 3 GiB
_SOURCES = ('local-dir:', 'hf-hub:')

_METHODS = ('bilinear', 'bicubic', 'nearest', 'lanczos', 'box', 'hamming', 'random')


def _are_numbers(values: Any, count: Sequence[int], kind: type = float) -> bool:
    kinds = (int,) if kind is int else (int, float)
    return (
        isinstance(values, list | tuple)
        and len(values) in count
        and all(type(x) in kinds and abs(x) < 1e12 for x in values)
    )


# what a configuration must say of images: it may come from anybody
_IMAGE: dict[str, Callable[[Any], bool]] = {
    'input_size': lambda size: _are_numbers(size, (3,), int) and min(size) > 0,
    'crop_pct': lambda share: _are_numbers([share], (1,)) and 0 < share < 2,
    'mean': lambda mean: _are_numbers(mean, (1, 2, 3, 4)),
    'std': lambda std: _are_numbers(std, (1, 2, 3, 4)) and all(std),
    'interpolation': lambda method: method in _METHODS,
}


def load_untrained(name: str, img_size: int | None = None, dynamic_size: bool = False) -> nn.Module:
    """A registered model as it is before training, in evaluation mode; arguments as for `load_classifier`."""
    check_model(name)
    return timm.create_model(name, **_size_arguments(name, img_size, dynamic_size)).eval()


def _size_arguments(name: str, img_size: int | None, dynamic_size: bool) -> dict[str, Any]:
    model, kwargs = sketch(name), {}
    if img_size is not None and takes_argument(model, 'img_size'):
        kwargs['img_size'] = img_size
    if dynamic_size and model.pretrained_cfg.get('fixed_input_size'):
        if not takes_argument(model, 'dynamic_img_size'):
            raise ValueError(f'{name} takes images of one size only')
        kwargs['dynamic_img_size'] = True
    return kwargs


def load_classifier(
    name: str, checkpoint: str | None = None, img_size: int | None = None, dynamic_size: bool = False
) -> nn.Module:
    """A model with weights, in evaluation mode.

    Args:
        name: A registered name, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        checkpoint: File of weights in our format or the authors'; None: the weights the name stands for.
        img_size: Side of the images; None: the model's own.
        dynamic_size: Whether a registered model shall take images of any size.

    Raises:
        ValueError: If the model is unknown or has no weights, or they can't be read or do not fit.
        FileNotFoundError: If the folder or the file does not exist.
        MissingExtraError: If its weights are quantised and there is no torchao that reads them.
    """
    kwargs: dict[str, Any] = {}
    if name.startswith(_SOURCES):
        if checkpoint is not None:
            raise ValueError(f'a checkpoint needs a registered model; {name!r} has weights of its own')
    else:
        config = check_model(name)
        if checkpoint is not None:
            kwargs['pretrained_cfg_overlay'] = {'file': checkpoint}
        elif not config.has_weights:
            raise ValueError(
                f'{name} has no published weights{by_hand_only(config)}; give a checkpoint, or a trained model as '
                'local-dir:FOLDER'
            )
        if img_size is not None or dynamic_size:
            kwargs |= _size_arguments(name, img_size, dynamic_size)
    if not name.startswith(_SOURCES):
        return timm.create_model(name, pretrained=True, **kwargs).eval()
    try:
        _check_source(name)
        return timm.create_model(name, pretrained=True, **kwargs).eval()
    except (ValueError, OSError, MissingExtraError):
        raise
    except Exception as error:  # whatever is wrong with the folder, wherever it shows
        raise ValueError(f"{name} is not a complete model in timm's layout: {type(error).__name__}, {error}") from error


def _check_source(name: str) -> None:
    """Read what timm is going to read, within bounds; it looks only for the files."""
    source, _, place = name.partition(':')
    if source == 'local-dir' and Path(place).is_dir():
        config = read_object(Path(place) / 'config.json')
        model = config.get('architecture')
        if isinstance(model, str) and is_model(model) and not is_ours(model):  # otherwise `build` does
            held = sum(x.numel() for x in load_checkpoint(weights_file(place)).values())
            args = config.get('model_args') or {}
            check_size(model, lambda: timm.create_model(name), args, from_file=True, held=held)


def label_names(model: nn.Module) -> Callable[[int], str]:
    """Class index to label: the names stored with the model, else ImageNet's if it has 1000 classes, else the index."""
    config = model.pretrained_cfg
    names, descriptions = config.get('label_names'), config.get('label_descriptions') or {}
    if names:
        if not isinstance(names, dict | list | tuple) or not isinstance(descriptions, dict):
            raise ValueError('the label names of the model are neither a list nor a dict')
        labels = {int(i): label for i, label in (names.items() if isinstance(names, dict) else enumerate(names))}
        return lambda index: str(descriptions.get(str(labels.get(index)), labels.get(index, index)))
    if model.num_classes == 1000:
        return ImageNetInfo().index_to_description
    return str


def data_config(
    model: nn.Module, img_size: int | None = None, crop_pct: float | None = None, test_size: bool = False
) -> dict[str, Any]:
    """How a model takes images, as timm's transforms and loaders expect it; grey images included.

    Args:
        model: With a `pretrained_cfg`.
        img_size: Side of the images; None: the model's own.
        crop_pct: Share of the resized image that is kept; None: the model's own.
        test_size: Take the size and crop that some of timm's tags recommend for tests.
    """
    config = resolve_data_config({'crop_pct': crop_pct}, model=model, use_test_size=test_size)
    if wrong := [name for name, fits in _IMAGE.items() if not fits(config[name])]:
        raise ValueError(f'the configuration of the model has {wrong[0]} {str(config[wrong[0]])[:80]}')
    asked = max(config['input_size'][1:]) / config['crop_pct']
    if not img_size and asked > _LARGEST_SIDE:
        raise ValueError(
            f'the configuration of the model asks for images resized to {asked:g} pixels; allowed are up to '
            f'{_LARGEST_SIDE} unless you give the size'
        )
    if img_size and img_size > _LARGEST_ASKED:
        raise ValueError(f'img_size is {img_size}; allowed are up to {_LARGEST_ASKED}')
    channels = getattr(model, 'in_chans', config['input_size'][0])
    config['input_size'] = (channels, *((img_size, img_size) if img_size else config['input_size'][1:]))
    if channels == 1:  # the configuration may still be for colour images
        config.update({name: (sum(config[name]) / len(config[name]),) for name in ('mean', 'std')})
    return config


def read_image(path: str | Path, channels: int) -> Image.Image:
    """An image file, rotated as its EXIF data says, grey or RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image or is damaged, or the model takes neither 1 nor 3 channels.
    """
    if channels not in (1, 3):
        raise ValueError(f'the model takes {channels}-channel images; files are read with 1 or 3 channels')
    if not Path(path).is_file():
        raise FileNotFoundError(f'no image file at {path}')
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert('L' if channels == 1 else 'RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f'{path} is not an image that can be read: {error}') from error


def classify(
    model: nn.Module,
    paths: Iterable[str | Path],
    topk: int = 5,
    img_size: int | None = None,
    device: torch.device | str = 'cpu',
) -> Iterator[dict[str, Any]]:
    """The most probable classes of each image, with the preprocessing that the model's configuration asks for.

    Args:
        model: As `load_classifier` returns it.
        paths: Image files.
        topk: Classes per image; all of them if there are fewer.
        img_size: Side of the images; None: the model's own.
        device: Where to run.

    Yields:
        `{'file': ..., 'predictions': [{'index': ..., 'label': ..., 'probability': ...}, ...]}` per image, in order.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is not an image, or the model can't take the size.
    """
    config = data_config(model, img_size)
    transform = create_transform(**config, is_training=False)
    label = label_names(model)
    model = model.to(device)
    for path in paths:
        image = transform(read_image(path, config['input_size'][0])).unsqueeze(0).to(device)
        with torch.inference_mode():
            probabilities = model(image).float().softmax(1)[0].cpu()
        values, indices = probabilities.topk(min(topk, len(probabilities)))
        yield {
            'file': str(path),
            'predictions': [
                {'index': index, 'label': label(index), 'probability': round(value, 6)}
                for index, value in zip(indices.tolist(), values.tolist(), strict=True)
            ],
        }
