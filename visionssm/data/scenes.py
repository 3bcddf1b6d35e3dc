"""A small real data set for detectors and segmenters: handwritten digits on photographs, as COCO and ADE20K have it.

The digits are scikit-learn's (1797, 8x8 pixels), and so are the two photographs. Training and validation share neither
a digit nor a part of a photograph.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {'training': ((0.0, 0.75), (0, 1400)), 'validation': ((0.75, 1.0), (1400, 1797))}
CLASSES = tuple('0123456789')
_INK = 0.4  # from this share of ink on, a pixel belongs to the digit


def make_scenes(output: str | Path, train: int = 1000, val: int = 100, size: int = 96, seed: int = 0) -> None:
    """Write scenes of up to 8 digits that hardly overlap, each 25 % to 45 % as high as the image.

    Args:
        output: Folder. It gets `images/{training,validation}/*.jpg`, `coco/{training,validation}.json` with boxes and
            masks, and `annotations/{training,validation}/*.png` with semantic maps as ADE20K has them: 0 is not
            labelled (and does not occur), 1 the background, 2 to 11 the digits.
        train: Scenes to train on.
        val: Scenes to validate on.
        size: Side of a scene in pixels, 64 to 400.
        seed: Same seed, same files.

    Raises:
        ValueError: If a number is out of range.
        FileExistsError: If `output` is not empty.
    """
    if train < 1 or val < 1:
        raise ValueError(f'{train} and {val} scenes are asked for; allowed are numbers from 1')
    if not 64 <= size <= 400:
        raise ValueError(f'size is {size}; allowed are 64..400')
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f'{output} is not empty: give another folder')
    digits, labels, photos = _load()
    for split, count in zip(SPLITS, (train, val), strict=True):
        (left, right), (first, end) = SPLITS[split]
        parts = [photo[:, int(left * photo.shape[1]) : int(right * photo.shape[1])] for photo in photos]
        rng = np.random.default_rng([seed, list(SPLITS).index(split)])
        _write_split(output, split, count, size, rng, (digits[first:end], labels[first:end], parts))


def _load() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    return digits.images / 16, digits.target, load_sample_images().images


def _write_split(output: Path, split: str, count: int, size: int, rng: np.random.Generator, material: tuple) -> None:
    folders = {kind: output / kind / split for kind in ('images', 'annotations')}
    for folder in (*folders.values(), output / 'coco'):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        scene, digits = make_scene(rng, size, *material)
        name = f'{i:05d}'
        Image.fromarray(scene).save(folders['images'] / f'{name}.jpg', quality=95)
        semantic = np.ones((size, size), np.uint8)
        for label, mask in digits:
            semantic[mask] = label + 2
            rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
            x, y = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': i + 1,
                    'category_id': label + 1,
                    'bbox': [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                    'area': int(mask.sum()),
                    'iscrowd': 0,
                    'segmentation': run_lengths(mask),
                }
            )
        Image.fromarray(semantic).save(folders['annotations'] / f'{name}.png')
        images.append({'id': i + 1, 'file_name': f'{name}.jpg', 'height': size, 'width': size})
    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(CLASSES)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (output / 'coco' / f'{split}.json').write_text(json.dumps(content), encoding='utf-8')


def make_scene(
    rng: np.random.Generator, size: int, digits: np.ndarray, labels: np.ndarray, photos: list[np.ndarray]
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One scene.

    Args:
        rng: Source of all choices.
        size: Side in pixels.
        digits: Shares of ink in 0..1, (N, 8, 8).
        labels: Their classes, (N,).
        photos: Backgrounds to cut from, (H, W, 3), bytes.

    Returns:
        The image (size, size, 3), and (class, visible mask (size, size)) of each digit.
    """
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(min(100, *photo.shape[:2]), min(photo.shape[:2]) + 1))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
    scene = np.asarray(crop, np.float32) * rng.uniform(0.35, 0.65)  # so that bright ink shows up everywhere
    covered = np.zeros((size, size), bool)
    found = []
    for _ in range(rng.integers(3, 11)):
        chosen = int(rng.integers(len(digits)))
        ink = _enlarge(digits[chosen], int(rng.integers(round(0.25 * size), round(0.45 * size) + 1)))
        height, width = ink.shape
        top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        area = (slice(top, top + height), slice(left, left + width))
        if covered[area].mean() > 0.05:
            continue
        colour = rng.uniform(170, 255, 3)
        scene[area] += ink[..., None] * (colour - scene[area])
        mask = np.zeros((size, size), bool)
        mask[area] = ink >= _INK
        for _, other in found:
            other &= ~mask
        covered[area] = True
        found.append((int(labels[chosen]), mask))
    noise = rng.normal(0, 4, scene.shape)
    return np.clip(scene + noise, 0, 255).astype(np.uint8), [(label, mask) for label, mask in found if mask.any()]


def _enlarge(digit: np.ndarray, side: int) -> np.ndarray:
    """A digit as shares of ink, `side` pixels high and wide, cut to its ink."""
    ink = np.asarray(Image.fromarray(digit.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)).clip(
        0, 1
    )
    rows, columns = np.nonzero((ink >= _INK).any(1))[0], np.nonzero((ink >= _INK).any(0))[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run-length encoding of a mask (H, W): columns one after the other, zeros first."""
    flat = mask.flatten(order='F')
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {'counts': [0, *runs] if flat[0] else runs, 'size': list(mask.shape)}
