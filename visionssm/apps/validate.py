"""Accuracy of a classifier on a labelled data set: what turns a reported figure into a reproduced one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from visionssm.data import check_workers
from visionssm.files import check_writable, read_object, read_small, write_whole
from visionssm.version import __version__
from visionssm.weights.quantized import flatten

from .classify import data_config, load_classifier

DTYPES = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
_COLUMNS = ('model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation')
_STREAMS = ('wds/', 'hfids/', 'tfds/')
_PLACES = ('data', 'data_dir', 'class_map', 'checkpoint')
_SAVE_EVERY = 15.0  # seconds


@dataclass(frozen=True)
class Options:
    """What to measure, and on which data.

    Attributes:
        data: Folder with one folder of images per class (or with `val` or `validation` in it), 'wds/FOLDER', or
            'hfds/NAME'.
        split: Of the data set.
        data_dir: Where 'hfds/' stores its files.
        class_map: Text file with the names of all classes in order, or JSON file that maps some names to indices;
            '': the folders are all the classes, in alphabetical order.
        num_samples: Number of images in a 'wds/' folder without `_info.json`.
        model: Registered name, 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'.
        checkpoint: File of weights for a registered model; '': its own.
        scan: Scan order to use instead of the model's; '': its own.
        img_size: Side of the images; 0: the model's own.
        crop_pct: Share of the resized image that is kept; 0: the model's own.
        test_size: Take the size and crop that some of timm's tags recommend for tests.
        batch_size: Images at once.
        workers: Loader processes; 0: load in this one.
        device: Where to run.
        dtype: Key of `DTYPES`; all but float32 by autocast.
    """

    data: str
    model: str
    split: str = 'validation'
    data_dir: str = ''
    class_map: str = ''
    num_samples: int = 0
    checkpoint: str = ''
    scan: str = ''
    img_size: int = 0
    crop_pct: float = 0.0
    test_size: bool = False
    batch_size: int = 128
    workers: int = 4
    device: str = 'cpu'
    dtype: str = 'float32'


class UnreadableImageError(ValueError):
    """An image of the data set can't be read; its name is in the message."""


class _Images(Dataset):
    """The images of a timm data set from a given one on; an unreadable one is an error (timm takes its neighbour)."""

    def __init__(self, reader: Any, mode: str, first: int) -> None:
        self.reader, self.mode, self.first = reader, mode, first
        self.transform = None  # set by timm's loader

    def __len__(self) -> int:
        return len(self.reader) - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index += self.first
        try:
            stream, label = self.reader[index]
            with stream:
                image = Image.open(stream).convert(self.mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            name = self.reader.filename(index, absolute=True)
            raise UnreadableImageError(f'image {name} cannot be read: {error}') from None
        return self.transform(image), label


def validate(options: Options, output: Path, resume: bool = False) -> dict[str, Any]:
    """Measure one model, write `output/LABEL.json` and gather all results there in `output/results.csv`.

    LABEL distinguishes model, checkpoint, data, split and settings: no result replaces another.

    What has been counted is saved to `LABEL.partial` every few seconds and on interruption.

    Args:
        options: What to measure.
        output: Folder of results.
        resume: Continue an interrupted run of the same settings and weights; keep a finished one.

    Returns:
        The result, as in the JSON file.

    Raises:
        ValueError: If the model or the data can't be read, their classes differ, or the run to resume differs.
        OSError: If a file is missing, or the result can't be written.
        ImportError: If a package that the data set needs is missing.
    """
    if options.dtype not in DTYPES:
        raise ValueError(f'dtype is {options.dtype!r}; allowed are {", ".join(DTYPES)}')
    check_workers(options.workers)
    if not 1 <= options.batch_size < 1 << 31:
        raise ValueError(f'batch_size is {options.batch_size}; allowed are integers from 1')
    if not 0 <= options.crop_pct <= 1:
        raise ValueError(f"crop_pct is {options.crop_pct}; allowed are fractions up to 1, and 0 for the model's own")
    check_writable(output / 'results.csv')
    model = load_classifier(options.model, options.checkpoint or None, options.img_size or None)
    if options.scan:
        if not hasattr(model, 'set_scan'):
            raise ValueError(f'{options.model} has no scan order to choose; leave --scan out')
        model.set_scan(options.scan)
    config = data_config(model, options.img_size or None, options.crop_pct or None, options.test_size)
    data = _open(options, config['input_size'][0])
    classes = getattr(data.reader, 'class_to_idx', None) or {}
    count = max(classes.values()) + 1 if options.class_map else len(classes)
    if classes and (count > model.num_classes if options.class_map else count != model.num_classes):
        raise ValueError(
            f'{options.data} has {count} classes, {options.model} {model.num_classes}: give the data of the model, or '
            'a class map that gives each class its index'
        )

    settings = {**asdict(options), 'transform': config, 'weights': _digest(model), 'images': len(data)}
    if not isinstance(data, IterableDataset):  # then the place to resume from does not depend on these
        for option in ('batch_size', 'workers'):
            del settings[option]
    del settings['device']
    settings = json.loads(json.dumps(settings))  # as read back
    label = _label(options, settings)
    finished, partial = output / f'{label}.json', output / f'{label}.partial'
    if resume and finished.exists() and (result := read_object(finished)).get('settings') == settings:
        return result
    counted = _counted(partial, settings) if resume else _Counts()
    model = model.to(options.device)
    _count(model, data, config, options, counted, lambda: _write(partial, {'settings': settings, **asdict(counted)}))
    if counted.images != len(data):
        raise ValueError(
            f'{len(data) - counted.images} of the {len(data)} images of {options.data} were not read: '
            f'{", ".join(_broken_members(data)) or "see the warnings above"}'
        )
    result = _result(options, model, config, counted, settings)
    _write(finished, result)
    partial.unlink(missing_ok=True)
    gather(output)
    return result


def _label(options: Options, settings: Mapping[str, Any]) -> str:
    """A file name for the result: readable model and data, and a digest of all settings and weights."""
    sizes = (options.img_size, options.crop_pct, 'test-size' if options.test_size else '')
    parts = [options.model, Path(options.checkpoint).stem, *sizes, options.scan]
    parts += ['' if options.dtype == 'float32' else options.dtype, Path(options.data).name, options.split]
    named = re.sub(r'[^\w.+-]+', '_', '-'.join(map(str, filter(None, parts)))).strip('_')
    places = {name: os.path.abspath(settings[name]) for name in _PLACES if os.path.exists(settings[name])}
    measured = {key: value for key, value in settings.items() if key not in ('batch_size', 'workers')} | places
    digest = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()
    return f'{named[-150:]}-{digest[:10]}'


def gather(output: Path) -> Path:
    """Write all results in a folder to `results.csv`, best first, with the columns of timm's results files.

    Results of one model that differ in checkpoint, data or settings are named by their files there. Runs may
    gather at the same time: each looks again after writing, so that the last one to write has seen all results.
    """
    table = output / 'results.csv'
    written = None
    while (found := _versions(output)) != written:
        results = {file.stem: read_object(file) for file in found}
        names = Counter(result['model'] for result in results.values())
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        for label, result in sorted(results.items(), key=lambda item: -item[1]['top1']):
            writer.writerow(result if names[result['model']] == 1 else {**result, 'model': label})
        write_whole(table, text.getvalue())
        written = found
    return table


def _versions(output: Path) -> dict[Path, tuple[int, int]]:
    """The results in a folder, and what changes when one is rewritten."""
    return {file: ((stat := file.stat()).st_mtime_ns, stat.st_ino) for file in sorted(output.glob('*.json'))}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(content, indent=1) + '\n')


def _open(options: Options, channels: int) -> Any:
    """A timm data set."""
    if channels not in (1, 3):
        raise ValueError(f'the model takes {channels}-channel images; files are read with 1 or 3 channels')
    kind, slash, rest = options.data.partition('/')
    stream = options.data.startswith(_STREAMS)
    if slash and kind in ('hfds', 'wds', 'hfids', 'tfds'):
        name, root = options.data, options.data_dir or (rest if kind == 'wds' else None)
    else:
        name, root = '', options.data
    if (not name or kind == 'wds') and '://' not in root and not Path(root).is_dir():
        raise FileNotFoundError(f'no folder of images at {root}')
    class_map: str | dict[str, int] = options.class_map
    if class_map and not class_map.endswith(('.txt', '.json')):  # not .pkl, which older timm unpickles unrestrictedly
        raise ValueError(f'class map {class_map!r} ends in neither .txt nor .json')
    try:
        if class_map.endswith('.json'):
            class_map = read_object(class_map)
        elif class_map:
            read_small(class_map)  # timm opens it, whatever it is
        return create_dataset(
            name,
            root=root,
            split=options.split,
            class_map=class_map or None,
            batch_size=options.batch_size,
            input_img_mode='L' if channels == 1 else 'RGB',
            **({'num_samples': options.num_samples or None} if stream else {}),
        )
    except (RuntimeError, AssertionError) as error:  # how timm reports that there are no images, or no such split
        raise ValueError(f'{options.data} cannot be read: {error}') from error


@dataclass
class _Counts:
    """What has been seen: images, batches, and those with the right class first or among the first five."""

    images: int = 0
    batches: int = 0
    top1: int = 0
    top5: int = 0
    seconds: float = 0.0


def _counted(partial: Path, settings: Mapping[str, Any]) -> _Counts:
    if not partial.exists():
        return _Counts()
    stored = read_object(partial)
    before = stored.pop('settings')
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise ValueError(
            f'{partial} is from a run with a different {", ".join(changed)}; start without --resume to replace it'
        )
    return _Counts(**stored)


def _count(
    model: nn.Module, data: Any, config: Mapping[str, Any], options: Options, counts: _Counts, save: Any
) -> None:
    """Go through the images that have not been counted."""
    from tqdm import tqdm

    streams = isinstance(data, IterableDataset)
    skip = counts.batches if streams else 0  # a stream has to be read again, but not classified again
    images = data if streams else _Images(data.reader, 'L' if config['input_size'][0] == 1 else 'RGB', counts.images)
    if not len(images):
        return
    loader = create_loader(
        images,
        input_size=config['input_size'],
        batch_size=options.batch_size,
        is_training=False,
        use_prefetcher=False,
        interpolation=config['interpolation'],
        mean=config['mean'],
        std=config['std'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        num_workers=options.workers,
        pin_memory=options.device.startswith('cuda'),
        persistent_workers=False,
    )
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    start, before, saved = time.perf_counter(), counts.seconds, time.perf_counter()
    quiet = not sys.stderr.isatty()
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            tqdm(total=len(data), initial=counts.images, disable=quiet, unit='img', desc=options.model) as bar,
        ):
            for number, (x, labels) in enumerate(_batches(loader)):
                if number < skip:
                    continue
                if labels.max() >= model.num_classes or labels.min() < 0:
                    raise ValueError(
                        f'{options.data} has a label {int(labels.max())}; {options.model} has classes 0 to '
                        f'{model.num_classes - 1}'
                    )
                logits = model(x.to(device)).float()
                found = logits.topk(min(5, logits.shape[1]))[1].cpu() == labels[:, None]
                counts.images += len(labels)
                counts.batches += 1
                counts.top1 += int(found[:, 0].sum())
                counts.top5 += int(found.any(1).sum())
                counts.seconds = before + time.perf_counter() - start
                bar.update(len(labels))
                bar.set_postfix_str(f'top-1 {100 * counts.top1 / counts.images:.2f}', refresh=False)
                if time.perf_counter() - saved > _SAVE_EVERY:
                    save()
                    saved = time.perf_counter()
    except BaseException:  # interruptions, too, keep what has been counted
        if counts.images:
            save()
        raise


def _batches(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; an error in a loader process comes without the traceback that torch puts in front."""
    try:
        yield from loader
    except UnreadableImageError as error:
        raise UnreadableImageError(str(error).strip().splitlines()[-1].partition('image ')[2] or str(error)) from None


def _result(
    options: Options, model: nn.Module, config: Mapping[str, Any], counts: _Counts, settings: Mapping[str, Any]
) -> dict[str, Any]:
    top1, top5 = (round(100 * right / counts.images, 4) for right in (counts.top1, counts.top5))
    device = torch.device(options.device)
    return {
        'model': _tagged(options.model, model),
        'top1': top1,
        'top1_err': round(100 - top1, 4),
        'top5': top5,
        'top5_err': round(100 - top5, 4),
        'param_count': round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        'img_size': config['input_size'][-1],
        'crop_pct': config['crop_pct'],
        'interpolation': config['interpolation'],
        'images': counts.images,
        'num_classes': model.num_classes,
        'dtype': options.dtype,
        'scan': options.scan,
        'checkpoint': Path(options.checkpoint).name,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
        'seconds': round(counts.seconds, 1),
        'images_per_second': round(counts.images / max(counts.seconds, 1e-9), 1),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        'versions': {'visionssm': __version__, 'torch': torch.__version__, 'timm': timm.__version__},
        'settings': settings,
    }


def _tagged(name: str, model: nn.Module) -> str:
    """The name with its tag: a bare one stands for its default weights."""
    tag = model.pretrained_cfg.get('tag')
    return name if ':' in name or '.' in name or not tag else f'{name}.{tag}'


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, x in flatten(model.state_dict())[0].items():
        digest.update(name.encode() + x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _broken_members(data: Any) -> Iterable[str]:
    """Images in local WebDataset shards that can't be read, by shard and name."""
    import tarfile

    reader = data.reader
    for shard in getattr(getattr(reader, 'split_info', None), 'filenames', ()):
        file = Path(reader.root, shard)
        if not file.is_file():
            continue
        with tarfile.open(file) as members:
            for member in members:
                if Path(member.name).suffix.lower() not in ('.jpg', '.jpeg', '.png', '.webp'):
                    continue
                try:
                    Image.open(members.extractfile(member)).convert('RGB')
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                    yield f'{member.name} in {file}'
