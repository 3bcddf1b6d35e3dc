"""The messages that the package can raise, read off its source, under the advice in `docs/troubleshooting.md`.

A section of that page collects the messages whose file or text matches its line `<!-- errors: PATTERN -->`; the first
section that matches takes a message.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {'visionssm': ROOT, 'visionssm_mmcv': ROOT, 'visionssm_kernels': ROOT / 'kernels'}
GAP = '…'
_MARK = re.compile(r'^<!-- errors: (.+) -->$', re.M)


class Message(NamedTuple):
    """One message.

    Attributes:
        kind: Name of the exception; '': a reason that a message quotes.
        text: What it says, with `GAP` for what is filled in.
        file: Where it is raised, such as 'ops/cpu.py'.
    """

    kind: str
    text: str
    file: str


@cache
def messages() -> tuple[Message, ...]:
    """Every message, in the order of the source, each once per file."""
    found = {}
    for package, root in SOURCES.items():
        for file in sorted((root / package).rglob('*.py')):
            name = file.relative_to(root / 'visionssm' if package == 'visionssm' else root).as_posix()
            found |= dict.fromkeys(_read(ast.parse(file.read_text(encoding='utf-8')), name))
    return tuple(found)


def _read(tree: ast.Module, file: str) -> Iterator[Message]:
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            said = [_text(argument, constants) for argument in node.exc.args]
            text = max(said, key=len, default='')  # an OSError has its number first
            if _says(text):
                yield Message(ast.unparse(node.exc.func).rpartition('.')[2], text, file)
        elif isinstance(node, ast.FunctionDef) and node.name == 'refuse':
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value and _says(text := _text(inner.value, constants)):
                    yield Message('', text, file)


def _says(text: str) -> bool:
    """Whether there is something to read; a message that only passes on another stands with that one."""
    return bool(re.search(r'\w\w', text))


def _text(node: ast.expr, constants: dict[str, object]) -> str:
    """What an expression reads like."""
    match node:
        case ast.Constant(value=value):
            text = str(value)
        case ast.JoinedStr(values=parts):
            text = ''.join(_text(part, constants) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name) if name in constants:
            text = str(constants[name])
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            text = _text(left, constants) + _text(right, constants)
        case ast.IfExp(body=body, orelse=orelse):
            text = ' / '.join(filter(_says, (_text(body, constants), _text(orelse, constants)))) or GAP
        case ast.Call(func=ast.Attribute(value=pattern, attr='format')):
            text = re.sub(r'{.*?}', GAP, _text(pattern, constants))
        case _:
            text = GAP
    return text


def assign(markdown: str) -> dict[str, list[Message]]:
    """The messages of each section of the page, by the section's pattern.

    Raises:
        ValueError: If a message has no section, or a section no message.
    """
    sections: dict[str, list[Message]] = {pattern: [] for pattern in _MARK.findall(markdown)}
    for message in messages():
        pattern = next((p for p in sections if re.search(p, f'{message.file}: {message.text}')), None)
        if pattern is None:
            raise ValueError(f'docs/troubleshooting.md has no section for "{message.text}" of {message.file}')
        sections[pattern].append(message)
    if empty := [pattern for pattern, found in sections.items() if not found]:
        raise ValueError(f'docs/troubleshooting.md has a section without messages: {empty[0]}')
    return sections


def fill(markdown: str) -> str:
    """The page with its messages."""
    sections = assign(markdown)
    return _MARK.sub(lambda mark: '\n'.join(map(_line, sections[mark[1]])), markdown)


def _line(message: Message) -> str:
    text = re.sub(r'\s+', ' ', message.text).strip()
    return f'- ``{text}``{{ .message }} <small>{message.kind or "a reason given"}, {message.file}</small>'
