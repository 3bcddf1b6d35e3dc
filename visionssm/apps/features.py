"""Features of images by a trained model, written as they are computed: memory use does not grow with their number."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visionssm.data import check_workers
from visionssm.files import write_whole

from .classify import data_config, read_image

SUFFIXES = ('.safetensors', '.npz')
_IMAGES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are; folders stand for the images in them and their subfolders, sorted.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a folder has no images.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.rglob('*') if file.suffix.lower() in _IMAGES)
            if not found:
                raise ValueError(f'no images in {path}; looked for {", ".join(_IMAGES)}')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f'no image file at {path}')
    return files


class _Images(Dataset):
    def __init__(self, files: list[Path], transform: Callable, channels: int) -> None:
        self.files, self.transform, self.channels = files, transform, channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(read_image(self.files[index], self.channels))


def extract(
    model: nn.Module,
    files: list[Path],
    img_size: int | None = None,
    device: torch.device | str = 'cpu',
    batch_size: int = 32,
    workers: int = 0,
) -> Iterator[np.ndarray]:
    """What the classifier of `model` sees of each image: pooled features, (n, D) in fp32, batch after batch in order.

    Args:
        model: As `load_classifier` returns it.
        files: Images.
        img_size: Side of the images; None: the model's own.
        device: Where to run.
        batch_size: Images at a time.
        workers: Loader processes; 0: load in this one.

    Raises:
        ValueError: If a file is not an image, the model can't take the size, or `workers` are too many.
    """
    check_workers(workers)
    config = data_config(model, img_size)
    images = _Images(files, create_transform(**config, is_training=False), config['input_size'][0])
    model = model.to(device).eval()
    for batch in DataLoader(images, batch_size, num_workers=workers):
        yield pooled(model, batch.to(device))


def pooled(model: nn.Module, batch: Tensor) -> np.ndarray:
    """What the classifier of `model` sees of a batch of normalised images, (n, D) in fp32."""
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(batch), pre_logits=True)
    return features.float().cpu().numpy()


def write_features(file: Path, batches: Iterable[np.ndarray], names: list[str], notes: dict[str, str]) -> None:
    """Write features row by row; the file appears at the end, whole or not at all.

    Args:
        file: `.safetensors`: tensor `features`, and in the metadata `files` (a JSON list) and `notes`. `.npz`: arrays
            `features` and `files`.
        batches: (n, D) in fp32, with as many rows in all as there are names.
        names: Of the images.
        notes: Further metadata of a `.safetensors` file.

    Raises:
        ValueError: If the suffix is neither.
        OSError: If it can't be written.
    """
    check_suffix(file)
    write = _write_safetensors if file.suffix == '.safetensors' else _write_npz
    write_whole(file, lambda stream: write(stream, iter(batches), names, notes))


def check_suffix(file: Path) -> None:
    """Raise `ValueError` unless features can be written to a file of this name."""
    if file.suffix not in SUFFIXES:
        raise ValueError(f'{file} has the wrong suffix; features are written as {" or ".join(SUFFIXES)}')


def _write_safetensors(stream: Any, batches: Iterator[np.ndarray], names: list[str], notes: dict[str, str]) -> None:
    # the library writes whole tensors only; the format is a length, a JSON header and the numbers
    first = next(batches)
    shape = [len(names), first.shape[1]]
    tensor = {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, 4 * shape[0] * shape[1]]}
    metadata = {'files': json.dumps(names, ensure_ascii=False), **notes}
    header = json.dumps({'__metadata__': metadata, 'features': tensor}, ensure_ascii=False).encode()
    header += b' ' * (-len(header) % 8)
    stream.write(len(header).to_bytes(8, 'little') + header)
    _write_rows(stream, first, batches)


def _write_npz(stream: Any, batches: Iterator[np.ndarray], names: list[str], notes: dict[str, str]) -> None:
    first = next(batches)
    with zipfile.ZipFile(stream, 'w', allowZip64=True) as archive:
        with archive.open('features.npy', 'w', force_zip64=True) as part:
            header = {'descr': '<f4', 'fortran_order': False, 'shape': (len(names), first.shape[1])}
            np.lib.format.write_array_header_2_0(part, header)
            _write_rows(part, first, batches)
        with archive.open('files.npy', 'w', force_zip64=True) as part:
            np.lib.format.write_array(part, np.array(names), allow_pickle=False)


def _write_rows(stream: Any, first: np.ndarray, batches: Iterator[np.ndarray]) -> None:
    stream.write(first.astype('<f4').tobytes())
    for batch in batches:
        stream.write(batch.astype('<f4').tobytes())


@contextmanager
def progress(batches: Iterable[np.ndarray], total: int, shown: bool) -> Iterator[Iterator[np.ndarray]]:
    """The same batches, with a progress bar that shows throughput and time left."""
    from tqdm import tqdm

    with tqdm(total=total, disable=not shown, unit='image', dynamic_ncols=True, leave=False) as bar:

        def counted() -> Iterator[np.ndarray]:
            for batch in batches:
                yield batch
                bar.update(len(batch))

        yield counted()
