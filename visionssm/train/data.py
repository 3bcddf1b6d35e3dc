"""Images for training: an order that depends on seed and position alone, so a run can resume anywhere."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_dataset, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from visionssm.data.digits import CLASSES, load_digits

from .checkpoint import random_states, seed_cpu, set_random_states
from .parallel import Processes
from .recipe import Recipe

STREAMS = ('hfids/', 'wds/', 'tfds/')
_CPU = torch.device('cpu')
_MODES = {1: 'L', 3: 'RGB'}
_TRIES = 10  # unreadable images in a row
_RESTARTS = 3
_SPLIT_SEED = 0  # what is held out is the same whatever the training seed
_FILLER = -1  # index and label of what fills up the last batch of an evaluation

Transform = Callable[[Image.Image], Tensor]


class ImageConfig(NamedTuple):
    """Images as the model takes them: channels, height and width; mean, deviation; how evaluation resizes and crops."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = 'center'


class NoSplitError(ValueError):
    """A folder has no images for the evaluation apart."""


class BadImagesError(ValueError):
    """More images are unreadable than the recipe allows."""


class Source(Protocol):
    """Labelled images by index, and the names of the classes, if they have any."""

    classes: list[str] | None

    def __len__(self) -> int:
        """How many."""

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image and its label."""

    def name(self, index: int) -> str:
        """What to call it."""


class DigitsSource:
    """Scikit-learn's digits: 8 x 8 pixels, the split of the demo."""

    def __init__(self, training: bool, channels: int) -> None:
        digits = load_digits()
        images = digits.train_images if training else digits.test_images
        self.classes: list[str] | None = list(CLASSES)
        self.mode = _MODES[channels]
        self.images = (images[:, 0] * 255).round().to(torch.uint8).numpy()
        self.labels = (digits.train_labels if training else digits.test_labels).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image and its label."""
        return Image.fromarray(self.images[index]).convert(self.mode), self.labels[index]

    def name(self, index: int) -> str:
        """What to call it."""
        return f'digit {index}'


class TimmSource:
    """A data set of timm with random access: a folder of class folders, a tar file, or hfds/.

    Args:
        recipe: Which.
        split: Of it.
        channels: Of the images.
        classes: Names of the classes in the order of their indices; None: as the data have them.
    """

    def __init__(self, recipe: Recipe, split: str, channels: int, classes: list[str] | None = None) -> None:
        hub = recipe.data.startswith('hfds/')
        self.mode = _MODES[channels]
        # a split may lack a class: indices are those of the training images
        class_map = {name: index for index, name in enumerate(classes)} if classes and not hub else None
        where = recipe.data if hub else '', recipe.data_dir if hub else recipe.data
        self.reader = create_dataset(*where, split=split, class_map=class_map).reader
        index = getattr(self.reader, 'class_to_idx', None)
        self.classes: list[str] | None = sorted(index, key=index.get) if index else None

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image and its label."""
        file, label = self.reader[index][:2]
        with Image.open(file) as image:
            return image.convert(self.mode), label

    def name(self, index: int) -> str:
        """What to call it."""
        return str(self.reader.filename(index, absolute=True))

    def labels(self) -> np.ndarray:
        """The labels of all images, without reading the images."""
        samples = getattr(self.reader, 'samples', None)
        if samples is not None:
            return np.array([sample[-1] for sample in samples])
        return np.array(self.reader.dataset[self.reader.label_key])


class Part:
    """Some images of a source.

    Args:
        source: All images.
        indices: Of those that are taken.
    """

    def __init__(self, source: TimmSource, indices: np.ndarray) -> None:
        self.source, self.indices, self.classes = source, indices.tolist(), source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image and its label."""
        return self.source.read(self.indices[index])

    def name(self, index: int) -> str:
        """What to call it."""
        return self.source.name(self.indices[index])


def _split(source: TimmSource, share: float, training: bool) -> Part:
    """The images that are trained on, or the share of every class that is held out, in a fixed random order."""
    labels, kept = source.labels(), []
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        count = round(share * len(of_class))
        if not 0 < count < len(of_class):
            name = source.classes[label] if source.classes else label
            raise ValueError(f'class {name} has {len(of_class)} images; held_out {share:g} of them leaves no split')
        kept.append(of_class[count:] if training else of_class[:count])
    return Part(source, np.sort(np.concatenate(kept)))


class _Samples(Dataset):
    """Transformed images by (position in the epoch, index); all randomness depends on seed, epoch and position.

    An unreadable image is replaced by the next in the data and named.
    """

    def __init__(self, source: Source, transform: Transform, seed: int, epoch: int) -> None:
        self.source, self.transform, self.seed, self.epoch = source, transform, seed, epoch

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, list[str]]:
        position, index = key
        if index == _FILLER:
            image, _, bad = self[position, 0]
            return image, _FILLER, bad
        bad: list[str] = []
        for _ in range(_TRIES):
            try:
                image, label = self.source.read(index)
                break
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow's readers do
                bad.append(f'{self.source.name(index)} ({error})')
                index = (index + 1) % len(self.source)
        else:
            raise BadImagesError(f'{_TRIES} images in a row cannot be read: {"; ".join(bad)}')
        with _seeded(self.seed, self.epoch, position):
            return self.transform(image), label, bad


@contextmanager
def _seeded(*seeds: int) -> Iterator[None]:
    """Generators of this process seeded; without loader processes that is the trainer, so they are restored."""
    states = random_states(_CPU)
    seed_cpu(*seeds)
    try:
        yield
    finally:
        set_random_states(states, _CPU)


class _Draw:
    """Keys of `_Samples` for the batches of one process, from a batch on.

    Args:
        order: Indices as an epoch visits them, over all processes.
        micro: Images per process and batch.
        processes: Every batch is dealt out to them.
        first: Where to begin.
    """

    def __init__(self, order: np.ndarray, micro: int, processes: Processes, first: int = 0) -> None:
        self.order, self.step, self.processes, self.first = order, micro * processes.count, processes, first

    def __len__(self) -> int:
        return -(-len(self.order) // self.step) - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(self.first * self.step, len(self.order), self.step):
            end = min(start + self.step, len(self.order))
            positions = range(start + self.processes.rank, end, self.processes.count)
            yield [(position, int(self.order[position])) for position in positions]


class _Stream(IterableDataset):
    """A streamed data set of timm; made anew for every epoch, as its order goes on from what was read before."""

    def __init__(self, recipe: Recipe, split: str, channels: int, training: bool, epoch: int, batch: int) -> None:
        self.data = create_dataset(
            recipe.data,
            recipe.data_dir,
            split=split,
            is_training=training,
            batch_size=batch,
            num_samples=recipe.train_samples if training else None,
            seed=recipe.seed,
            input_img_mode=_MODES[channels],
        )
        self.data.set_epoch(epoch)
        self.data.set_loader_cfg(num_workers=recipe.workers)
        self.transform: Transform | None = None

    def __len__(self) -> int:
        return self.data.reader.num_samples  # of all processes; the data set's own length is that of one

    def __iter__(self) -> Iterator[tuple[Tensor, int, list[str]]]:
        self.data.transform = self.transform
        for image, label in self.data:
            yield image, int(label), []


def train_transform(recipe: Recipe, image: ImageConfig) -> Transform:
    """The augmentation of a recipe, of one image at a time: to bytes, which are normalised on the device.

    Raises:
        ValueError: If timm does not know the policy `auto_augment`.
    """
    try:
        transform = create_transform(
            image.input_size,
            is_training=True,
            scale=tuple(recipe.scale),
            ratio=tuple(recipe.ratio),
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter or None,
            auto_augment=recipe.auto_augment,
            interpolation=recipe.interpolation,
            mean=image.mean,
            std=image.std,
            use_prefetcher=True,
        )
    except Exception as error:  # AssertionError, KeyError, IndexError and more
        raise ValueError(
            f'auto_augment {recipe.auto_augment!r} cannot be made: {str(error) or type(error).__name__}'
        ) from error
    for step in transform.transforms:
        for op in getattr(step, 'ops', ()):
            if op.name.startswith('Posterize'):
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    # RandAugment of the published recipes asks for no bits now and then, a black image, which Pillow 13 refuses
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _collate(samples: list[tuple[Tensor, int, list[str]]]) -> tuple[Tensor, Tensor, list[str]]:
    images, labels, bad = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), [name for names in bad for name in names]


class ImageData:
    """Training and evaluation batches of a recipe.

    Args:
        recipe: Data, augmentation and batch size.
        train: What `open_source` gave for training.
        image: Images as the model takes them.
        num_classes: Classes of the model.
        processes: Those that share each batch.
        say: Takes lines of text for the user.

    Raises:
        ValueError: If the data are not there, or the batch size does not suit them.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Any,
        image: ImageConfig,
        num_classes: int,
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.train, self.image, self.processes, self.say = recipe, train, image, processes, say
        self.classes: list[str] | None = getattr(train, 'classes', None)
        if self.classes is not None and len(self.classes) > num_classes:
            raise ValueError(f'the data have {len(self.classes)} classes, and the model has {num_classes}')
        self.bad: list[str] = []
        self.restarts = 0
        share = recipe.batch_size // processes.count
        self.micro = min(recipe.micro_batch or share, share)
        if not self.micro or recipe.batch_size % (self.micro * processes.count):
            raise ValueError(
                f'batch_size {recipe.batch_size} is not a multiple of {self.micro or 1} (micro_batch) x '
                f'{processes.count} (processes)'
            )
        self.accumulate = recipe.batch_size // (self.micro * processes.count)
        self.streamed = recipe.data.startswith(STREAMS)
        self.val = None
        if recipe.evaluated:
            self.val = open_source(recipe, recipe.val_split, False, image.input_size[0], self.classes)
        self.images = len(train)
        if recipe.train_samples and not self.streamed:
            self.images = min(self.images, recipe.train_samples)
        self.updates = self.images // recipe.batch_size
        if not self.updates:
            raise ValueError(f'batch_size is {recipe.batch_size}; there are {self.images} training images')
        self._augmentation = train_transform(recipe, image)
        self._mixup = self._make_mixup(num_classes)
        self._erasing = None
        if recipe.random_erase:
            self._erasing = RandomErasing(recipe.random_erase, mode='pixel', device=str(processes.device))
        pixels = {'dtype': torch.float32, 'device': processes.device}
        self._mean = torch.tensor(image.mean, **pixels).view(-1, 1, 1) * 255
        self._std = torch.tensor(image.std, **pixels).view(-1, 1, 1) * 255

    def _make_mixup(self, num_classes: int) -> Mixup | None:
        recipe = self.recipe
        if not recipe.mixup and not recipe.cutmix:
            return None
        if self.micro % 2:
            raise ValueError(f'mixup and cutmix need even batches; each has {self.micro} images')
        return Mixup(
            recipe.mixup,
            recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            label_smoothing=recipe.smoothing,
            num_classes=num_classes,
        )

    def _eval_transform(self) -> Transform:
        return create_transform(
            self.image.input_size,
            interpolation=self.image.interpolation,
            mean=self.image.mean,
            std=self.image.std,
            crop_pct=self.image.crop_pct,
            crop_mode=self.image.crop_mode,
            use_prefetcher=True,
        )

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the training images as an epoch visits them, over all processes."""
        generator = np.random.default_rng((self.recipe.seed, epoch))
        shuffled = generator.permutation(len(self.train))
        if self.recipe.repeated_aug > 1:
            shuffled = shuffled.repeat(self.recipe.repeated_aug)
        return shuffled[: self.updates * self.recipe.batch_size]

    def train_batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented (images, labels) of this process in an epoch, from an update on; mixed labels are distributions."""
        mixup = self._mixup
        if mixup is not None:
            mixup.mixup_enabled = not self.recipe.mixup_off_epoch or epoch < self.recipe.mixup_off_epoch
        for images, labels, bad in self._restarted(epoch, first * self.accumulate):
            self._note(bad)
            images, labels = self._to_device(images), labels.to(self.processes.device, non_blocking=True)
            if self._erasing is not None:
                images = self._erasing(images)
            yield mixup(images, labels) if mixup is not None else (images, labels)

    def eval_batches(self, training: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised (images, labels) of this process's part of the evaluation; labels of -1 do not count.

        Args:
            training: Take the training images instead, as those of the evaluation are taken: not augmented, in order.
        """
        source = self.train if training else self.val
        if self.streamed:
            loader = self._stream_loader(self.recipe.val_split, False, 0)
        else:
            order = np.arange(len(source))
            order = np.append(order, [_FILLER] * (-len(order) % self.processes.count))  # as many for every process
            samples = _Samples(source, self._eval_transform(), self.recipe.seed, 0)
            loader = self._loader(samples, _Draw(order, self.micro, self.processes), 0)
        for images, labels, bad in loader:
            if bad:
                raise BadImagesError(f'an image of the evaluation cannot be read: {bad[0]}')
            yield self._to_device(images), labels.to(self.processes.device, non_blocking=True)

    def _to_device(self, images: Tensor) -> Tensor:
        images = images.to(self.processes.device, non_blocking=True)
        return (images.float() - self._mean) / self._std

    def _note(self, bad: list[str]) -> None:
        for name in bad:
            if name not in self.bad:
                self.bad.append(name)
                self.say(f'unreadable image, replaced by another: {name}')
        if len(self.bad) > self.recipe.max_bad_images:
            raise BadImagesError(
                f'{len(self.bad)} unreadable images, and max_bad_images is {self.recipe.max_bad_images}: '
                f'{"; ".join(self.bad)}'
            )

    def _restarted(self, epoch: int, position: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Batches from a position on; loader processes that die are started again where they were."""
        while True:
            try:
                for batch in self._batches(epoch, position):
                    yield batch
                    position += 1
                return
            except (RuntimeError, EOFError, OSError) as error:  # torch raises the first, a broken pipe the others
                died = self.recipe.workers and (type(error) is not RuntimeError or 'DataLoader worker' in str(error))
                if not died or self.restarts == _RESTARTS:
                    raise
                self.restarts += 1
                reason = str(error) or type(error).__name__
                self.say(f'a loader process died ({reason}); started again, {self.restarts} of {_RESTARTS} times')

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        if self.streamed:  # a stream can't be entered midway: what comes before is read again
            loader = self._stream_loader(self.recipe.train_split, True, epoch)
            return islice(loader, first, self.updates * self.accumulate)
        samples = _Samples(self.train, self._augmentation, self.recipe.seed, epoch)
        return self._loader(samples, _Draw(self.order(epoch), self.micro, self.processes, first), epoch)

    def _stream_loader(self, split: str, training: bool, epoch: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        stream = _Stream(self.recipe, split, self.image.input_size[0], training, epoch, self.micro)
        stream.transform = self._augmentation if training else self._eval_transform()
        return self._loader(stream, None, epoch)

    def _loader(self, data: Dataset, batches: _Draw | None, salt: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        drawing = {'batch_sampler': batches} if batches is not None else {'batch_size': self.micro}
        # of its own: the loader draws from the generator, and that of the training is in the checkpoints
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + salt)
        loader = DataLoader(
            data,
            num_workers=self.recipe.workers,
            collate_fn=_collate,
            generator=generator,
            pin_memory=self.processes.device.type == 'cuda',
            **drawing,
        )
        batches_ = iter(loader)
        main = threading.current_thread() is threading.main_thread()
        if self.recipe.workers and main and hasattr(signal, 'SIGCHLD'):
            # torch's handler would interrupt training anywhere; without it the loader reports the death itself
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches_


def channels_of(recipe: Recipe) -> int:
    """Channels of the images of a recipe."""
    return recipe.model_args.get('in_chans', 1 if recipe.data == 'digits' else 3)


def open_source(
    recipe: Recipe, split: str, training: bool, channels: int, classes: list[str] | None = None
) -> DigitsSource | TimmSource | Part | _Stream:
    """The data of a recipe.

    Args:
        recipe: Which.
        split: Of them.
        training: Whether they are trained on.
        channels: Of the images.
        classes: Names of the classes in the order of their indices; None: as the data have them.

    Raises:
        ValueError: If they can't be found or opened, or have no such split.
    """
    if channels not in _MODES:
        raise ValueError(f'images are read with 1 or 3 channels; the model takes {channels}')
    if recipe.held_out and recipe.data.startswith(('digits', *STREAMS)):
        raise ValueError(
            f'held_out needs a folder of images or hfds/; {recipe.data} has a split of its own or is a stream'
        )
    if recipe.data == 'digits':
        return DigitsSource(training, channels)
    try:
        if recipe.held_out:
            split = recipe.train_split
        if recipe.data.startswith(STREAMS):
            return _Stream(recipe, split, channels, training, 0, 1)
        source = TimmSource(recipe, split, channels, classes)
    except (
        AssertionError, RuntimeError, KeyError, ImportError, OSError, TypeError, ValueError,
    ) as error:  # what timm raises  # fmt: skip
        raise ValueError(
            f'data {recipe.data!r}, split {split!r}, cannot be opened: {_reason(recipe, error)}'
        ) from error
    if recipe.held_out:
        return _split(source, recipe.held_out, training)
    root = getattr(source.reader, 'root', None)
    if not training and root is not None and Path(root) == Path(recipe.data) and Path(root).is_dir():
        # timm would fall back to the folder itself, training images included
        raise NoSplitError(f'{recipe.data} has no folder for {split!r}; set val_split or held_out, or val_split=null')
    if training and root is not None and Path(root) == Path(recipe.data) and (Path(root) / 'train').is_dir():
        raise ValueError(f'{recipe.data} has no folder for {split!r}, only for train; set train_split')
    return source


def _reason(recipe: Recipe, error: Exception) -> str:
    folder = '/' not in recipe.data or recipe.data.partition('/')[0] not in ('hfds', 'hfids', 'wds', 'tfds')
    if folder and not os.path.exists(recipe.data):
        return 'there is no such folder'
    if recipe.data.startswith('wds/') and recipe.data_dir is None:
        return 'set data_dir, where the shards are'
    return str(error) or type(error).__name__
