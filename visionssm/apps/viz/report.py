"""One HTML file of everything that was observed: no network, no other file, light and dark, for phone and desk."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visionssm.files import write_whole

from .observe import LayerView

_CELLS = 14  # along the longer side of the map that one can point at
_TITLES = {
    'steps': 'Step sizes Δ',
    'decays': 'What states keep, exp(ΔA): 0 dark, 1 bright',
    'outputs': 'Output of the scan, root mean square',
}


def layer_data(layer: LayerView, maps: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the page shows of a layer: its `maps` by name, and what every patch of a coarse grid reads."""
    height, width = layer.grid
    share = max(1.0, max(height, width) / _CELLS)
    rows, columns = round(height / share), round(width / share)
    reads = []
    for row in range(rows):
        for column in range(columns):
            middle = int((row + 0.5) * height / rows) * width + int((column + 0.5) * width / columns)
            read = layer.maps('attention', middle).sum(0)
            read = F.adaptive_avg_pool2d(read[None], (rows, columns))[0]
            reads.append((255 * read / read.max().clamp(min=1e-30)).round().to(torch.uint8))
    drawn = []
    for what, title in _TITLES.items():
        values = maps[what]
        low, high = (0.0, 1.0) if what == 'decays' else (values.min().item(), values.max().item())
        text = title if what == 'decays' else f'{title}: {low:.3g} dark, {high:.3g} bright'
        drawn.append((text, [_png(_coloured(x, low, high)) for x in values]))
    attention = base64.b64encode(torch.stack(reads).numpy().tobytes()).decode()
    return {'name': layer.name, 'grid': (rows, columns), 'attention': attention, 'maps': drawn}


def write_report(
    file: Path, title: str, about: str, images: Sequence[dict], pictures: Sequence[tuple[str, Path]]
) -> None:
    """Write the page, whole or not at all.

    Args:
        file: Where to.
        title: Its heading.
        about: A line below.
        images: Per image: `name`, `photo` (RGB from 0 to 255, (H, W, 3)), `layers` of `layer_data`, and `pictures`,
            pairs of caption and PNG file.
        pictures: The same that go for all images.
    """
    data = {
        'title': title,
        'about': about,
        'palette': base64.b64encode(_palette().tobytes()).decode(),
        'pictures': [(caption, _embedded(path)) for caption, path in pictures],
        'images': [
            {
                'name': image['name'],
                'photo': _png(image['photo']),
                'layers': image['layers'],
                'pictures': [(caption, _embedded(path)) for caption, path in image['pictures']],
            }
            for image in images
        ],
    }
    text = json.dumps(data).replace('<', '\\u003c')  # names of files may hold anything
    page = Path(__file__).with_name('report.html').read_text(encoding='utf-8')
    write_whole(file, page.replace('__DATA__', text))


def _palette() -> np.ndarray:
    from matplotlib import colormaps

    return (255 * colormaps['viridis'](np.arange(256))[:, :3]).round().astype(np.uint8)


def _coloured(values: Tensor, low: float, high: float) -> np.ndarray:
    shares = ((values - low) / max(high - low, 1e-30)).clamp(0, 1).nan_to_num()
    return _palette()[(255 * shares).round().to(torch.uint8).numpy()]


def _png(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'


def _embedded(path: Path) -> str:
    return f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'
