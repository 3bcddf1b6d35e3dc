"""Fetch weights once, and never hand out a file that is not what it was.

What a file must be is known from its record, from the Hub (which names large files by their SHA-256), or else from its
first use: then the digest goes into `FILE.sha256` beside it, which `sha256sum -c` reads, too. A file that differs is
removed. Downloads appear in the cache under their name when they are complete, not before.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from visionssm.files import Stream, leftovers, open_regular, read_small, write_whole
from visionssm.version import __version__

from .checkpoint import load_checkpoint
from .published import published_files

_logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_DIGEST = re.compile(r'[0-9a-f]{64}')
_COMMIT = re.compile(r'@[0-9a-f]{40}$')
_FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')  # of a folder or Hub repository in timm's layout, best first


class WeightsError(OSError):
    """Weights can't be fetched, or are not what they were; the one-line message says what to do."""


class Source(Protocol):
    """Where a file is: fields of a tag's configuration, and of `Published`. The Hub goes before the URL, as in timm.

    Attributes:
        hf_hub_id: Hub repository, 'owner/name' or 'owner/name@revision'; None: not on the Hub.
        hf_hub_filename: Path in it; None: weights in timm's layout.
        url: Address; None: none.
    """

    @property
    def hf_hub_id(self) -> str | None: ...  # noqa: D102  see above

    @property
    def hf_hub_filename(self) -> str | None: ...  # noqa: D102

    @property
    def url(self) -> Any: ...  # noqa: D102  timm also has pairs


class Cached(NamedTuple):
    """A file in the cache, and where it came from.

    Attributes:
        path: The file.
        origin: 'hf://owner/name@commit/path' or a URL.
    """

    path: Path
    origin: str

    @property
    def record(self) -> Path:
        """Where its digest is noted."""
        return self.path.with_name(f'{self.path.name}.sha256')


def fetch(source: Source, cache_dir: str | Path | None = None, latest: bool = False) -> Path:
    """The file of `source`: from the cache if it is there, without any request, else downloaded; verified.

    Args:
        source: A tag's configuration, or a `Published`.
        cache_dir: Folder to use instead of the Hub's cache (`HF_HOME`) and torch's (`TORCH_HOME`).
        latest: Ask the Hub whether a branch has moved, as huggingface_hub does, instead of using what is cached.

    Raises:
        WeightsError: If the file can't be fetched, or is not what it should be.
    """
    moving = source.hf_hub_id and not _COMMIT.search(source.hf_hub_id)
    found = None if latest and moving else find_cached(source, cache_dir)
    if found is None:
        found = _download(source, cache_dir)
    verify(found)
    return found.path


def find_cached(source: Source, cache_dir: str | Path | None = None) -> Cached | None:
    """The file of `source` if it is in the cache; nothing is requested, and nothing verified."""
    if source.hf_hub_id:
        repo, revision = _split(source.hf_hub_id)
        for name in _names(source):
            found = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
            if isinstance(found, str):
                return _from_hub(repo, name, found)
    elif source.url and (path := _url_path(source.url, cache_dir)).is_file():
        return Cached(path, source.url)
    return None


def verify(cached: Cached) -> None:
    """Compare the digest of a file with what is known of it; note it if nothing is known yet.

    Raises:
        WeightsError: If it differs from what is known, or nothing is known and it can't be read; it is removed.
    """
    digest = sha256(cached.path)
    origin, recorded = _read_record(cached.record)
    if origin is not None and origin != cached.origin:
        raise WeightsError(
            f'{cached.path} was downloaded from {origin}, not from {cached.origin}: remove it, or give '
            'another cache_dir'
        )
    known = (
        ('the published one', _published_digest(cached.origin), ''),
        ('the one the Hub states', _hub_digest(cached.path), ''),
        ('the one from first use', recorded, f'; if the authors replaced the file, remove {cached.record}'),
    )
    for meaning, expected, advice in known:
        if expected not in (None, digest):
            remove(cached.path)
            raise WeightsError(
                f'{cached.path} is damaged or was altered: its SHA-256 {digest} is not {meaning}, {expected}; '
                f'it was removed, so the next attempt downloads it again{advice}'
            )
    if not any(expected for _, expected, _ in known):  # only a readable file becomes the standard
        try:
            load_checkpoint(cached.path)
        except ValueError as error:
            remove(cached.path)
            raise WeightsError(f'{error}; it was removed, so the next attempt downloads it again') from None
    if recorded is None:
        _write_record(cached, digest)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file from the cache, with what it links to.

    Raises:
        WeightsError: If that is not allowed; the file must not be used.
    """
    chain = [path]
    while chain[-1].is_symlink():  # the Hub's cache: snapshot, blob, and perhaps a store that repositories share
        chain.append(chain[-1].parent / chain[-1].readlink())
    try:
        for link in chain:
            link.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f'{path} is not what it should be and could not be removed ({error.strerror}): remove it by hand'
        ) from error


def weights_file(folder: str | Path) -> Path:
    """The weights in a folder that `save_for_hf` wrote, or that is laid out like one.

    Raises:
        ValueError: If there are none.
    """
    for name in _FOLDER_FILES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(f'{folder} holds no weights; looked for {" and ".join(_FOLDER_FILES)}')


def partial_downloads(source: Source, cache_dir: str | Path | None = None) -> list[Path]:
    """What killed downloads of `source` left behind; a download in progress is among them."""
    if source.hf_hub_id:
        repo, _ = _split(source.hf_hub_id)
        folder = Path(cache_dir or constants.HF_HUB_CACHE) / f'models--{repo.replace("/", "--")}' / 'blobs'
        return sorted(folder.glob('*.incomplete'))
    if not source.url:
        return []
    path = _url_path(source.url, cache_dir)
    return leftovers(path.parent, path.name)


def _published_digest(origin: str) -> str | None:
    """Of a file on the Hub, whatever its commit."""
    place = re.sub(r'@[^/]+', '', origin)
    digests = (file.sha256 for file in published_files() if place == f'hf://{file.repo}/{file.filename}')
    return next(filter(None, digests), None)


def _names(source: Source) -> tuple[str, ...]:
    return (source.hf_hub_filename,) if source.hf_hub_filename else _FOLDER_FILES


def _split(hub_id: str) -> tuple[str, str | None]:
    repo, _, revision = hub_id.partition('@')
    return repo, revision or None


def _from_hub(repo: str, name: str, path: str) -> Cached:
    commit = Path(path).parts[-1 - len(name.split('/'))]
    return Cached(Path(path), f'hf://{repo}@{commit}/{name}')


def _hub_digest(path: Path) -> str | None:
    """The SHA-256 by which the Hub's cache names the blob of a large file; None for others."""
    name = path.readlink().name if path.is_symlink() else ''
    return name if _DIGEST.fullmatch(name) else None


def _url_path(url: str, cache_dir: str | Path | None) -> Path:
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / 'checkpoints'  # as timm
    name = urlsplit(url).path.rpartition('/')[2]
    if not name:
        raise WeightsError(f'{url} names no file')
    return folder / name


def _download(source: Source, cache_dir: str | Path | None) -> Cached:
    if source.hf_hub_id:
        return _download_from_hub(source.hf_hub_id, _names(source), cache_dir)
    if source.url:
        path = _url_path(source.url, cache_dir)
        _download_url(source.url, path)
        return Cached(path, source.url)
    raise WeightsError('these weights have no address to download from')


def _download_from_hub(hub_id: str, names: tuple[str, ...], cache_dir: str | Path | None) -> Cached:
    """The first of `names` that exists."""
    repo, revision = _split(hub_id)
    where = f'{" or ".join(names)} of {repo}' + (f' at {revision}' if revision else '')
    endpoint = constants.ENDPOINT
    options: dict[str, Any] = {
        'revision': revision,
        'cache_dir': cache_dir,
        'library_name': 'visionssm',
        'library_version': __version__,
    }
    try:
        path = None
        for name in names[:-1]:
            with suppress(EntryNotFoundError):
                path = hf_hub_download(repo, name, **options)
                break
        if path is None:
            name = names[-1]
            path = hf_hub_download(repo, name, **options)
    except GatedRepoError as error:
        advice = f'accept its terms at {endpoint}/{repo}, then run `hf auth login` or set HF_TOKEN'
        raise WeightsError(f'{where}: the repository is gated; {advice}') from error
    except RepositoryNotFoundError as error:
        advice = 'if it is private, run `hf auth login` or set HF_TOKEN'
        raise WeightsError(f'{where}: {endpoint} has no such repository; {advice}') from error
    except RevisionNotFoundError as error:
        raise WeightsError(f'{where}: {endpoint} has no such revision of it') from error
    except LocalEntryNotFoundError as error:
        why = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else f'{endpoint} could not be reached'
        raise WeightsError(f'{where}: not in the cache, and {why} ({_first_line(error.__cause__ or error)})') from error
    except EntryNotFoundError as error:
        raise WeightsError(f'{where}: {endpoint} has no such file') from error
    except Exception as error:  # the transports (requests, httpx, xet) have their own errors; all of them give a reason
        raise WeightsError(f'{where}: the download failed: {_first_line(error)}') from error
    return _from_hub(repo, name, path)


def _download_url(url: str, path: Path) -> None:
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f'{url}: not in the cache ({path}), and HF_HUB_OFFLINE is set')
    request = Request(url, headers={'User-Agent': f'visionssm/{__version__}'})

    def receive(stream: Stream) -> None:
        with urlopen(request, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            length, received = response.headers.get('Content-Length'), 0
            with tqdm(desc=path.name, total=length and int(length), unit='B', unit_scale=True) as bar:
                while chunk := response.read(_CHUNK):
                    received += stream.write(chunk)
                    bar.update(len(chunk))
        if length is not None and received != int(length):
            raise WeightsError(f'{url}: the download ended after {received} of {length} bytes; try again')

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, receive)
    except WeightsError:
        raise
    except (OSError, HTTPException) as error:
        raise WeightsError(f'{url}: the download failed: {_first_line(error)}') from error


def _first_line(error: BaseException) -> str:
    if type(error) is URLError and isinstance(error.reason, BaseException):  # a wrapper that adds nothing
        error = error.reason
    text = (getattr(error, 'strerror', None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _read_record(record: Path) -> tuple[str | None, str | None]:
    """(origin, digest) as noted; None for both if there is no note."""
    try:
        lines = read_small(record).splitlines()
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        raise WeightsError(f'{record} cannot be read ({_first_line(error)}): remove it') from error
    if len(lines) != 2 or not lines[0].startswith('# ') or not _DIGEST.fullmatch(lines[1][:64]):
        raise WeightsError(f'{record} is damaged: remove it')
    return lines[0][2:], lines[1][:64]


def _write_record(cached: Cached, digest: str) -> None:
    try:
        write_whole(cached.record, f'# {cached.origin}\n{digest}  {cached.path.name}\n')
    except OSError as error:  # a cache owned by others, or a full disk: the weights themselves are fine
        _logger.info('the SHA-256 of %s is not recorded: %s', cached.path, error)
