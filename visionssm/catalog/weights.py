"""What weights there are, where they are, and which are in the cache: for `visionssm weights`."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import get_pretrained_cfg

from visionssm.weights.download import Cached, fetch, find_cached, partial_downloads, verify
from visionssm.weights.published import published_files
from visionssm.weights.records import Published

from .models import model_names, tag_record


class Weights(NamedTuple):
    """One published file, and how much of it is in the cache.

    Attributes:
        file: Its record.
    """

    file: Published

    @property
    def name(self) -> str:
        """`model.tag` or `model.method_dataset`."""
        return self.file.name

    @property
    def cached(self) -> Cached | None:
        """The file, if it is in the cache."""
        return find_cached(self.file)

    def describe(self) -> dict[str, Any]:
        """All that is known, JSON-serialisable; `size` in bytes, `state` as in the table."""
        file, cached = self.file, self.cached
        if cached is None:
            state, size = 'by hand' if file.by_hand else '', file.size
        else:
            state = 'verified' if cached.record.is_file() else 'cached'
            size = cached.path.stat().st_size
        return {
            'name': file.name,
            'task': file.task,
            'license': file.license,
            'size': size,
            'state': state,
            'where': file.where,
            'path': cached and str(cached.path),
            'reported': dict(file.metrics),
            'origin_url': file.origin_url or None,
            'notes': list(file.remarks),
        }


def find_weights(pattern: str = '') -> list[Weights]:
    """The published files whose name matches.

    Args:
        pattern: Shell-style wildcards, or a part of the name; '': all.

    Raises:
        ValueError: If none matches.
    """
    tags = (name for name in model_names(tags=True) if '.' in name)
    every = [Weights(tag_record(get_pretrained_cfg(name, allow_unregistered=False))) for name in tags]
    every += [Weights(file) for file in published_files() if file.method]
    wanted = pattern if set('*?[') & set(pattern) else f'*{pattern}*'
    found = [weights for weights in every if fnmatch.fnmatchcase(weights.name, wanted)]
    if not found:
        raise ValueError(f'no weights match {pattern!r}; `visionssm weights` without a pattern shows all')
    return sorted(found, key=lambda weights: weights.name)


def download(found: list[Weights]) -> Iterator[tuple[Weights, Path | str]]:
    """Fetch and verify: each with its path, or with why that failed."""
    for weights in found:
        if weights.file.by_hand:
            yield weights, f'to be downloaded by hand from {weights.file.where}'
            continue
        try:
            yield weights, fetch(weights.file)
        except OSError as error:
            yield weights, str(error)


def verify_cached(found: list[Weights]) -> Iterator[tuple[Weights, Path | str]]:
    """Check cached files against their digests: each with its path, or with what is wrong; bad files are removed."""
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

    Blobs used by other revisions in the Hub's cache stay.
    """
    for weights in found:
        doomed = partial_downloads(weights.file)
        if (cached := weights.cached) is not None:
            doomed += [cached.record, cached.path, *_unused_blob(cached.path)]
        for path in doomed:
            if path.is_symlink() or path.exists():
                size = path.lstat().st_size
                path.unlink()
                yield path, size


def _unused_blob(path: Path) -> list[Path]:
    """What a link in the Hub's cache leads to, if nothing else there leads to it; never the store behind it."""
    if not path.is_symlink():
        return []
    snapshots = next(parent for parent in path.parents if parent.name == 'snapshots')
    users = [other for other in snapshots.rglob('*') if other.is_symlink() and _blob(other) == _blob(path)]
    return [_blob(path)] if users == [path] else []


def _blob(path: Path) -> Path:
    return Path(os.path.abspath(path.parent / path.readlink()))
