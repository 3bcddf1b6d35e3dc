"""What weights there are, where they are, and what of them is in the cache: for `visionssm weights`."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import PretrainedCfg, get_pretrained_cfg

from visionssm.weights.download import Cached, fetch, find_cached, hub_name, partial_downloads, verify
from visionssm.weights.downstream import DOWNSTREAM, Downstream

from .models import model_names, reported_top1


class Weights(NamedTuple):
    """One published file.

    Attributes:
        name: `model.tag`, or the name of a `Downstream`.
        task: 'classification', or what a `Downstream` was trained on.
        source: Where it is: a tag's configuration, or a `Downstream`.
    """

    name: str
    task: str
    source: PretrainedCfg | Downstream

    @property
    def where(self) -> str:
        """Its address, or that of the page from which a person gets it; '' if none is known."""
        pages = re.findall(r'https://\S+', ' '.join(self.source.notes or ()))
        return hub_name(self.source) or self.source.url or ''.join(pages[:1])

    @property
    def by_hand(self) -> bool:
        """Whether only a person can get it."""
        return not (self.source.hf_hub_id or self.source.url)

    @property
    def cached(self) -> Cached | None:
        """The file, if it is in the cache."""
        return find_cached(self.source)

    def _reported(self) -> dict[str, float]:
        if isinstance(self.source, Downstream):
            return dict(self.source.metrics)
        top1 = reported_top1(self.source)
        return {} if top1 is None else {'top-1': top1}

    def describe(self) -> dict[str, Any]:
        """All that is known, JSON-serialisable; `size` in bytes, `state` as in the table."""
        cached = self.cached
        stated = [match[1] for note in self.source.notes or () if (match := re.match(r'file of ([\d.]+) MB', note))]
        if cached is None:
            state = 'by hand' if self.by_hand else ''
            size = round(float(stated[0]) * 1e6) if stated else None
        else:
            state = 'verified' if cached.record.is_file() else 'cached'
            size = cached.path.stat().st_size
        return {
            'name': self.name,
            'task': self.task,
            'license': self.source.license or 'unknown',
            'size': size,
            'state': state,
            'where': self.where,
            'path': cached and str(cached.path),
            'reported': self._reported(),
            'origin_url': self.source.origin_url,
            'notes': list(self.source.notes or ()),
        }


def find_weights(pattern: str = '') -> list[Weights]:
    """The published files whose name matches.

    Args:
        pattern: Shell-style wildcards, or a part of the name; '': all.

    Raises:
        ValueError: If none does.
    """
    tags = [name for name in model_names(tags=True) if '.' in name]
    every = [Weights(name, 'classification', get_pretrained_cfg(name, allow_unregistered=False)) for name in tags]
    tasks = {'coco': 'detection', 'ade20k': 'segmentation'}
    every += [Weights(name, tasks[entry.dataset], entry) for name, entry in DOWNSTREAM.items()]
    wanted = pattern if set('*?[') & set(pattern) else f'*{pattern}*'
    found = [weights for weights in every if fnmatch.fnmatchcase(weights.name, wanted)]
    if not found:
        raise ValueError(f'no weights match {pattern!r}; `visionssm weights` without a pattern shows all')
    return sorted(found, key=lambda weights: weights.name)


def download(found: list[Weights]) -> Iterator[tuple[Weights, Path | str]]:
    """Fetch and verify: each with its path, or with why that failed."""
    for weights in found:
        if weights.by_hand:
            yield weights, f'to be downloaded by hand from {weights.where}'
            continue
        try:
            yield weights, fetch(weights.source)
        except OSError as error:
            yield weights, str(error)


def verify_cached(found: list[Weights]) -> Iterator[tuple[Weights, Path | str]]:
    """Compare what is cached with its digests: each with its path, or with what is wrong; that is removed then."""
    for weights in found:
        if (cached := weights.cached) is None:
            continue
        try:
            verify(cached)
            yield weights, cached.path
        except OSError as error:
            yield weights, str(error)


def prune(found: list[Weights]) -> Iterator[tuple[Path, int]]:
    """Remove what is cached of `found`, with digests and remains of killed downloads: each path with its size in bytes.

    Blobs that other revisions in the Hub's cache use stay.
    """
    for weights in found:
        doomed = partial_downloads(weights.source)
        if (cached := weights.cached) is not None:
            doomed += [cached.record, cached.path, *_unused_blob(cached.path)]
        for path in doomed:
            if path.is_symlink() or path.exists():
                size = path.lstat().st_size
                path.unlink()
                yield path, size


def _unused_blob(path: Path) -> list[Path]:
    """What a link in the Hub's cache leads to, if nothing else there leads to it; not the store behind that."""
    if not path.is_symlink():
        return []
    snapshots = next(parent for parent in path.parents if parent.name == 'snapshots')
    users = [other for other in snapshots.rglob('*') if other.is_symlink() and _blob(other) == _blob(path)]
    return [_blob(path)] if users == [path] else []


def _blob(path: Path) -> Path:
    return Path(os.path.abspath(path.parent / path.readlink()))
