"""Files: written whole or not at all, by however many processes; read only if they are what they should be."""

from __future__ import annotations

import glob
import io
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SMALL_BYTES = 1 << 23  # a configuration with the names of 20,000 classes takes 2 MB


def open_regular(file: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading, unless it is something that need not end: a pipe, a device, or a link to one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no regular file.
    """
    # without waiting: a pipe that nobody writes to would hold up the opening itself
    descriptor = os.open(file, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f'{file} is not a regular file')
    return open(descriptor, 'rb')


def read_small(file: str | os.PathLike[str], most: int = _SMALL_BYTES) -> str:
    """The text of a small file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no regular file, has more than `most` bytes, or is not UTF-8.
    """
    with open_regular(file) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f'{file} has more than {most} bytes')
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'{file} is not text: {error}') from None


def read_object(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: As `read_small`, or if it is not JSON or holds no object.
    """
    text = read_small(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not valid JSON: {str(error).splitlines()[0]}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{file} holds a {type(content).__name__}, not an object')
    return content


def parse_yaml(text: str) -> Any:
    """What YAML says, of a text that a person wrote.

    Raises:
        ValueError: If it is not valid, has more than 64 KiB, or aliases: a few lines of them stand for any amount.
    """
    import yaml  # it comes with the Hub's client

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError('aliases are not allowed')
            return super().compose_node(parent, index)

    if len(text) > 1 << 16:
        raise ValueError('it has more than 64 KiB')
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


class Stream:
    """The binary stream that `write_whole` hands out; it remembers why a write failed."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`; returns the number of bytes."""
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Do nothing: the stream is flushed when it is complete."""


def write_whole(file: str | os.PathLike[str], content: bytes | str | Callable[[Stream], Any]) -> None:
    """Write a file beside its place, flush it to the disk, and only then give it its name.

    At any moment the name stands for nothing or for a whole file. Of several writers the last one wins. Folders that
    are missing are made.

    Args:
        file: Where to.
        content: Bytes, text (written as UTF-8, newlines as they are), or what writes to the binary stream it is given.

    Raises:
        OSError: If it can't be written; what was there before still is.
    """
    file = Path(file)
    with made_folder(file.parent), _new_name(file) as partial:
        with partial.open('xb') as raw:
            stream = Stream(raw)
            try:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content.encode() if isinstance(content, str) else content)
            except RuntimeError as error:  # torch's writer hides what the disk said
                raise stream.error or error from None
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, file)
    if hasattr(os, 'O_DIRECTORY'):  # the name has to reach the disk, too; Windows does not open folders
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_whole(source: Path, file: Path) -> None:
    """Give `source` a second name, `file`, or copy it where the file system has no links; replaces what is there."""
    with _new_name(file) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        os.replace(partial, file)


@contextmanager
def _new_name(file: Path) -> Iterator[Path]:
    """A name beside `file` that nobody else has; what still has it afterwards is removed."""
    partial = file.with_name(f'{file.name}.{uuid.uuid4().hex}.partial')
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()


def leftovers(folder: Path, name: str = '') -> list[Path]:
    """What killed processes left in a folder, and running ones are writing: of the file `name`; '': of all files."""
    return sorted(folder.glob(f'{glob.escape(name) or "*"}.*.partial'))


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """A folder, made with its parents where they are missing; those are removed if the block fails and left nothing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def added_files(folder: Path) -> Iterator[Path]:
    """A new folder whose files move into `folder`, each whole, when the block ends well; removed otherwise."""
    with made_folder(folder), tempfile.TemporaryDirectory(dir=folder, prefix='.new-') as work:
        yield Path(work)
        for file in sorted(Path(work).iterdir()):
            os.replace(file, folder / file.name)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well; removed otherwise."""
    parent = folder.parent
    with made_folder(parent), tempfile.TemporaryDirectory(dir=parent, prefix=f'.{folder.name}-') as work:
        new = Path(work) / 'new'
        new.mkdir()
        yield new
        if folder.exists():
            os.rename(folder, Path(work) / 'old')
        os.rename(new, folder)


def check_replaceable(folder: Path, names: Collection[str], maker: str) -> None:
    """Raise unless `folder` can be written and holds nothing but what an earlier run wrote.

    Args:
        folder: To be replaced.
        names: Of the files and folders that a run writes.
        maker: What wrote them, for the message.

    Raises:
        ValueError: If it is a file, holds anything else, or its place can't be written to.
    """
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f'{folder} is a file; give a folder')
        other = sorted(path.name for path in folder.iterdir() if path.name not in names)
        if other:
            raise ValueError(f'{folder} holds {", ".join(other[:3])}, which no {maker} wrote; give another folder')
    _check_place(folder)


def check_extendable(folder: Path, marks: Collection[str], maker: str) -> None:
    """Raise unless `folder` can be written and is new, empty, or one that an earlier run has begun.

    Args:
        folder: To be written to.
        marks: Of the files and folders that a run writes; one that holds any of them is a run's.
        maker: What writes them, for the message.

    Raises:
        ValueError: If it is a file or another's, or its place can't be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file; give a folder')
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and not names.intersection(marks):
        raise ValueError(f'{folder} holds {min(names)}, which no {maker} wrote; give another folder')
    _check_place(folder)


def check_writable(file: Path) -> None:
    """Raise unless a file can be written, its folders made where they are missing.

    Raises:
        ValueError: If it is a folder, or its place can't be written to.
    """
    if file.is_dir():
        raise ValueError(f'{file} is a folder; give a file')
    _check_place(file)


def _check_place(path: Path) -> None:
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise ValueError(f'{path} cannot be written: {place} is a file')
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix='.visionssm-'):
            pass
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error.strerror or error}') from error
