"""What a file of `torch.save` asks for, read before torch reads it: nothing is run, unpacked or allocated here.

`torch.load(weights_only=True)` runs no code, but it believes what a file says of sizes: a few kilobytes can ask for any
amount of memory or time. A file that training wrote passes; one that asks for more than it holds does not.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from visionssm.files import open_regular

# of a training checkpoint with optimiser and averages of a thousand tensors: 2 MB and 200,000 steps
_PICKLE_BYTES, _PICKLE_STEPS = 1 << 26, 1_000_000
_DIRECTORY_BYTES = 1 << 23  # 80,000 records
_NESTED = 1_000_000  # values in one key
_LONG_INTEGERS = 1_000  # those over 64 bits: as keys, they can be made to collide
_EXPANDED_BYTES = 1 << 29  # of constants and shared weights, which a file holds once
_ZIP = b'PK\3\4'
# what ends a zip file: of over 4 GiB (torch always writes these two), and the common one
_END64, _LOCATOR, _END = struct.Struct('<4sQ2H2L4Q'), struct.Struct('<4sLQL'), struct.Struct('<4s4H2LH')
_LEGACY = bytes.fromhex('80028a0a6cfc9c46f9206aa850192e')  # torch's magic number as a pickle; until torch 1.6
_LEGACY_PICKLES = 5  # magic number, protocol, machine, content, names of storages
# what may be called: anything else that torch allows takes memory by a number in the file
_CALLED = re.compile(
    r'collections\.(OrderedDict|Counter)|torch\._utils\._rebuild_\w+|torch\.(Size|device|nn\.parameter\.Parameter)|'
    r'torch\.serialization\._get_layout|builtins\.set'
)


class _Limited:
    """A file for `zipfile`, which reads a directory whole: no single read takes more than `most` bytes."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self.stream, self.most = stream, most
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int | None = -1) -> bytes:
        least = self.most + 1
        data = self.stream.read(least if size is None or size < 0 else min(size, least))
        if len(data) > self.most:
            raise ValueError('its directory is larger than any checkpoint has')
        return data


class _Budget:
    """The reads of `pickletools` from a stream, up to a number of bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.left = stream, size

    def read(self, size: int) -> bytes:
        return self._taken(self.stream.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        return self._taken(self.stream.readline(self.left + 1))

    def _taken(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError('its pickle is larger than any checkpoint has')
        return data


def check_torch_file(path: Path, called: tuple[str, ...] = ()) -> bool:
    """Raise unless `path` is as `torch.save` writes it, and asks for no more than it holds.

    Args:
        path: The file.
        called: Names that the pickle may call besides those that tensors need.

    Returns:
        Whether it is a zip file, so that its tensors can be mapped instead of read.

    Raises:
        ValueError: If it is not; the message begins with the reason.
    """
    with open_regular(path) as stream, _as_damage():
        start = stream.read(512)
        if start.startswith(_ZIP):
            _check_zip(stream, called)
            return True
        if not start.startswith(_LEGACY):
            raise ValueError('it is damaged, or was not written by torch.save')
        with suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(start, 'utf-8', 'surrogateescape')
            raise ValueError('it is a tar file')
        stream.seek(0)
        pickles = _Budget(stream, _PICKLE_BYTES)
        for _ in range(_LEGACY_PICKLES):
            _check_pickle(pickles, called)
        return False


@contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except (MemoryError, OSError):
        raise
    except ValueError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except Exception as error:  # foreign bytes break parsers in any way
        raise ValueError(f'it is damaged, or was not written by torch.save ({type(error).__name__})') from None


def _check_zip(stream: BinaryIO, called: tuple[str, ...]) -> None:
    """Records are stored as they are, lie within the file, and all but the tensors are small."""
    size = stream.seek(0, io.SEEK_END)
    _check_end(stream, size)
    limited = _Limited(stream, _DIRECTORY_BYTES)
    with zipfile.ZipFile(limited) as archive:  # type: ignore[call-overload]
        limited.most = _PICKLE_BYTES
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError('its records are compressed, which torch.save never does')
        ends = [record.header_offset + 30 + record.file_size for record in records]
        if max(ends) > size or sum(record.file_size for record in records) > size:
            raise ValueError('its records are larger than the file')
        if any(record.compress_size != record.file_size for record in records):
            raise ValueError('the sizes of its records contradict each other')
        if sum(record.file_size for record in records if '/data/' not in record.filename) > _PICKLE_BYTES:
            raise ValueError('its pickle is larger than any checkpoint has')
        pickles = [record for record in records if record.filename.lower().endswith('data.pkl')]  # as torch looks it up
        if not pickles:
            raise ValueError('it is damaged, or was not written by torch.save')
        for record in pickles:
            _check_pickle(io.BytesIO(archive.read(record)), called)


def _check_end(stream: BinaryIO, size: int) -> None:
    """The file ends with the directory and nothing else, so that every reader finds the same one."""
    stream.seek(max(size - _END.size - _LOCATOR.size - _END64.size, 0))
    tail = stream.read()
    mark, *_, length, offset, comment = _END.unpack(tail[-_END.size :])
    after = _END.size
    if tail[-_END.size - _LOCATOR.size :].startswith(b'PK\6\7'):
        after = len(tail)
        _, _, place, _ = _LOCATOR.unpack(tail[_END64.size : -_END.size])
        *_, length, offset = _END64.unpack(tail[: _END64.size])
        if place != size - after:
            mark = b''
    if mark != b'PK\5\6' or comment or offset + length + after != size:
        raise ValueError('it is cut off, or was not written by torch.save')


def _check_pickle(stream: Any, called: tuple[str, ...]) -> None:
    """Follow a pickle without building anything: its steps, what it calls, and how large its keys are.

    The stack holds (values in it, meaning) per object; the meaning is known of texts, names of globals, and tuples.
    """
    stack: list[tuple[int, Any]] = []
    memo: dict[int, tuple[int, Any]] = {}
    refused: set[str] = set()
    marks: list[int] = []
    long = 0
    for step, (opcode, value, _) in enumerate(pickletools.genops(stream)):
        if step > _PICKLE_STEPS:
            raise ValueError('its pickle has more steps than any checkpoint has')
        name = opcode.name
        if name == 'MARK':
            marks.append(len(stack))
            continue
        if name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            memo[len(memo) if value is None else value] = stack[-1]
            continue
        if name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(memo[value])
            continue
        kinds = opcode.stack_before
        first = len(stack) - len(kinds)
        if pickletools.stackslice in kinds:
            first = marks.pop() - kinds.index(pickletools.markobject)
        if first < (marks[-1] if marks else 0):
            raise ValueError('it is damaged, or was not written by torch.save')
        taken = stack[first:]
        del stack[first:]
        if name in ('REDUCE', 'NEWOBJ') and not _may_call(*(meaning for _, meaning in taken), called):
            refused.add(str(taken[0][1]))
        long += isinstance(value, int) and value.bit_length() > 64
        meaning = value
        if name == 'GLOBAL':
            meaning = re.sub(r'^__builtin__ ', 'builtins ', value).replace(' ', '.')
        elif name in ('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3'):
            meaning = tuple(part for _, part in taken[:2])
        weight = 1 + sum(weight for weight, _ in taken)
        if weight > _NESTED and name.startswith('TUPLE') or long > _LONG_INTEGERS:
            raise ValueError('its pickle nests values deeper than any checkpoint does')
        stack += [(weight, meaning)] * len(opcode.stack_after)
    if refused:
        raise ValueError(f'it asks to run {", ".join(sorted(refused))}, which is not allowed in a file of weights')


def _may_call(function: Any, args: Any, called: tuple[str, ...]) -> bool:
    if function == 'torch._tensor._rebuild_from_type_v2':  # a tensor with attributes
        function = args[0]
    if function == '_codecs.encode':  # bytes
        return args[1] == 'latin1'
    return isinstance(function, str) and (function in called or bool(_CALLED.fullmatch(function)))


def check_expansion(content: Any, size: int) -> None:
    """Raise unless the tensors in `content` are about as large as the file that they are from, and hold values.

    Views can say that they have any number of values: 10^12 times the same, or a million times the whole file.

    Args:
        content: What `torch.load` gave.
        size: Of the file, in bytes.

    Raises:
        ValueError: If they take over 512 MiB more than twice the file, or have no values.
    """
    total, seen, waiting = 0, set(), [content]
    while waiting:
        x = waiting.pop()
        if isinstance(x, Tensor):
            if x.is_meta or x.is_nested:
                raise ValueError('it holds tensors without values')
            total += x.numel() * x.element_size()
        elif isinstance(x, Mapping | list | tuple) and id(x) not in seen:
            seen.add(id(x))
            waiting += x.values() if isinstance(x, Mapping) else x
    if total > 2 * size + _EXPANDED_BYTES:
        raise ValueError(f'its tensors would take {total} bytes, the file has {size}')
