"""Pictures of what a model does with images: paths, receptive field, activations, decays, attention, evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor, nn

from visionssm.apps.classify import data_config, label_names, read_image
from visionssm.extras import MissingExtraError, check_extra
from visionssm.files import check_extendable

from .draw import Row, draw_maps, draw_over, draw_walks
from .observe import (
    LayerView,
    ScanView,
    activations,
    class_evidence,
    observe_layers,
    receptive_field,
)
from .report import layer_data, write_report

__all__ = [
    'LayerView',
    'ScanView',
    'activations',
    'class_evidence',
    'observe_layers',
    'receptive_field',
    'visualize',
]

_LARGEST_DRAWN = 256  # patches of a walk that one can follow


def visualize(
    model: nn.Module,
    files: Sequence[Path],
    output: Path,
    title: str,
    *,
    before: nn.Module | None = None,
    img_size: int | None = None,
    layers: int = 6,
    index: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Draw everything that there is to see of a model on images into a folder.

    Per image, under its name: `activations.png`, `evidence.png` (Grad-CAM, if `pytorch-grad-cam` is installed), and for
    models that scan `path.png` and one `scan_LAYER.png` per layer. For all: `receptive_field.png` and `report.html`,
    a page of its own that holds all of it.

    Args:
        model: In evaluation mode, on the CPU.
        files: Images.
        output: Folder; made if it is not there.
        title: Of the report.
        before: The same model with other weights, such as those before training, for its receptive field.
        img_size: Side of the images; None: the model's own.
        layers: Layers that are looked into at most, evenly spaced in depth.
        index: Class whose evidence is shown; None: the most probable one of every image.
        say: Called with a line of text now and then.

    Returns:
        The report.

    Raises:
        ValueError: If a file is not an image, the class does not exist, or the model can't take the size.
        MissingExtraError: If matplotlib is not installed.
    """
    check_extra('drawing', 'viz', 'matplotlib')
    if not files:
        raise ValueError('no images to look at; give at least one')
    if index is not None and not 0 <= index < model.num_classes:
        raise ValueError(f'class {index} does not exist; the model has {model.num_classes}')
    config = data_config(model, img_size)
    transform = create_transform(**config, is_training=False)
    check_extendable(output, ['report.html'], 'report')
    pairs = [(file, transform(read_image(file, config['input_size'][0])).unsqueeze(0)) for file in files]
    output.mkdir(parents=True, exist_ok=True)
    images = []
    for name, (_, image) in zip(_names(files), pairs, strict=True):
        folder = output / name
        folder.mkdir(exist_ok=True)
        images.append({'name': name, **_one_image(model, image, _photo(image, config), folder, layers, index, say)})
        say(f'wrote {folder}')
    tensors = [image for _, image in pairs]
    fields = [('receptive field' if before is None else 'after', receptive_field(model, tensors))]
    if before is not None:
        fields.insert(0, ('before', receptive_field(before, tensors)))
    count = f'{len(files)} image{"s" if len(files) > 1 else ""}'
    field = output / 'receptive_field.png'
    row = Row('fourth root\nof gradient', [x.numpy() ** 0.25 for _, x in fields], [name for name, _ in fields], (0, 1))
    draw_maps(field, [row], f'Effective receptive field, {count}')
    report = output / 'report.html'
    about = f'{count} of {config["input_size"][1]} × {config["input_size"][2]} pixels'
    write_report(report, title, about, images, [('effective receptive field of the last map', field)])
    return report


def _one_image(
    model: nn.Module,
    image: Tensor,
    photo: np.ndarray,
    folder: Path,
    most: int,
    index: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    pictures, layers = [], []
    stages = [x.numpy() for x in activations(model, image)]
    stages = [stages[i] for i in np.linspace(0, len(stages) - 1, min(len(stages), 8)).round().astype(int)]
    path = folder / 'activations.png'
    scaled = [(x - x.min()) / max(x.max() - x.min(), 1e-30) for x in stages]
    titles = [f'{x.shape[0]} × {x.shape[1]}' for x in stages]
    rows = [
        Row('' if i else 'root mean\nsquare', scaled[i : i + 4], titles[i : i + 4], (0, 1))
        for i in range(0, len(scaled), 4)
    ]
    draw_maps(path, rows, 'Activations in order, each from its least to its largest')
    pictures.append(('activations', path))
    try:
        values = class_evidence(model, image, index)
    except (MissingExtraError, ValueError) as error:  # a picture less
        say(f'no picture of class evidence: {error}')
    else:
        found = index if index is not None else int(model(image).argmax())
        path = folder / 'evidence.png'
        draw_over(path, photo, [(f'evidence for {label_names(model)(found)}', values.numpy())])
        pictures.append(('evidence for a class, Grad-CAM', path))
    views = observe_layers(model, image, most)
    if views:
        small = [view for view in views if view.scans[0].tokens.numel() <= _LARGEST_DRAWN]
        if small:
            path = folder / 'path.png'
            draw_walks(path, photo, small[0].walks(), small[0].grid, f'Path of {small[0].name}')
            pictures.append(('scan path', path))
        for view in views:
            maps = {what: view.maps(what) for what in ('steps', 'decays', 'outputs')}
            layers.append(layer_data(view, maps))
            names = [f'direction {k}' for k in range(len(maps['steps']))]
            rows = [
                Row(label, list(maps[what].numpy()), names, limits)
                for what, label, limits in (
                    ('steps', 'step Δ', None),
                    ('decays', 'kept,\nexp(ΔA)', (0, 1)),
                    ('outputs', 'output', None),
                )
            ]
            draw_maps(folder / f'scan_{view.name}.png', rows, view.name)
    return {'photo': photo, 'layers': layers, 'pictures': pictures}


def _photo(image: Tensor, config: dict[str, Any]) -> np.ndarray:
    """What the model sees, as RGB from 0 to 255."""
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    pixels = (image[0] * std + mean).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)
    return (255 * pixels).round().to(torch.uint8).numpy()


def _names(files: Sequence[Path]) -> list[str]:
    """A name of its own for every file."""
    names: list[str] = []
    for file in files:
        name, number = file.stem, 2
        while name in names:
            name, number = f'{file.stem}-{number}', number + 1
        names.append(name)
    return names
