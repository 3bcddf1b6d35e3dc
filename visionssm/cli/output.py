"""How the command line reads simple arguments and prints lines, pairs and tables."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from visionssm.catalog.tables import layout


def positive(text: str) -> int:
    """An argument that is an integer from 1, and no larger than a size in any library below."""
    if not text.isdecimal() or len(text) > 10 or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed; give an integer from 1 to {(1 << 31) - 1}')
    return int(text)


def filename(text: str) -> str:
    """An argument that is a path; the empty one would stand for the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed; give a path')
    return text


def path(text: str) -> Path:
    """The same as a `Path`."""
    return Path(filename(text))


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def pairs(pairs: list[tuple[str, str]], indent: str = '') -> None:
    """Print names and values in two columns; a name that repeats is printed once."""
    width = max(len(name) for name, _ in pairs)
    previous = None
    for name, value in pairs:
        print(f'{indent}{"" if name == previous else name:<{width}}  {value}')
        previous = name


def table(headings: list[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> None:
    """Print rows under headings, as text or as a Markdown table."""
    print(layout(headings, rows, markdown))


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    text = re.sub(r':\s*\n\s*', ': ', text.strip())
    return re.sub(r'\s*\n\s*', '; ', text) or type(error).__name__
