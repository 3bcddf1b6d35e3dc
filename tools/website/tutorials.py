"""The tutorials: scripts in `docs/tutorials`, run by tools/run_tutorials.py, as pages and as notebooks to download."""

from __future__ import annotations

import base64
import logging
import os
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / 'docs/tutorials'
RUN = ROOT / 'build/tutorials'  # notebooks with outputs, and what the tutorials write

_log = logging.getLogger('mkdocs.plugins.tutorials')  # a warning there ends a strict build
_ESCAPES = re.compile(r'\x1b\[[0-9;]*m')  # colours of a terminal


def names() -> list[str]:
    """The tutorials that there are."""
    return sorted(file.stem for file in SOURCES.glob('*.py'))


def read(name: str) -> nbformat.NotebookNode:
    """A tutorial without outputs.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in names():
        raise ValueError(f'no tutorial {name!r}; there are {", ".join(names())}')
    notebook = jupytext.read(SOURCES / f'{name}.py')
    notebook.metadata['kernelspec'] = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    for number, cell in enumerate(notebook.cells):
        cell['id'] = f'cell-{number}'  # random otherwise
    return notebook


def files() -> dict[str, str | bytes]:
    """What the site gets: a page, a notebook and pictures of each tutorial, by path."""
    found: dict[str, str | bytes] = {}
    for name in names():
        notebook, was_run = _newest(name)
        if not was_run and os.environ.get('CI'):
            _log.warning('%s has not been run as it is now: python tools/run_tutorials.py %s', name, name)
        text, pictures = page(notebook, name, was_run)
        found[f'tutorials/{name}.md'] = text
        found[f'tutorials/{name}.ipynb'] = nbformat.writes(notebook)
        found |= {f'tutorials/{file}': content for file, content in pictures.items()}
    return found


def _newest(name: str) -> tuple[nbformat.NotebookNode, bool]:
    """A tutorial with outputs, and True; without them, and False, if it was not run as it is now."""
    plain, done = read(name), RUN / f'{name}.ipynb'
    if done.is_file():
        notebook = nbformat.read(done, as_version=4)
        if [cell.source for cell in notebook.cells] == [cell.source for cell in plain.cells]:
            return notebook, True
    return plain, False


def page(notebook: nbformat.NotebookNode, name: str, was_run: bool) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    notes = [f'[Download this page as a notebook]({name}.ipynb){{ download="{name}.ipynb" }}']
    if not was_run:
        notes.append('\n!!! warning "This copy of the page was built without running its code: outputs are missing."')
    first, *rest = notebook.cells
    title, _, lead = first.source.partition('\n')
    parts, pictures = [title, '\n'.join(notes), lead.strip()], {}
    for cell in rest:
        if cell.cell_type == 'markdown':
            parts.append(cell.source)
            continue
        parts.append(f'```python\n{cell.source}\n```')
        said = ''.join(_text(output) for output in cell.get('outputs', ()))
        if said:
            parts.append(f'```{{ .text .output .no-copy }}\n{said.rstrip()}\n```')
        for output in cell.get('outputs', ()):
            if (picture := output.get('data', {}).get('image/png')) is not None:
                file = f'{name}-{len(pictures) + 1}.png'
                pictures[file] = base64.b64decode(picture)
                parts.append(f'![{cell.metadata["alt"]}]({file})')
    return '\n\n'.join(parts) + '\n', pictures


def _text(output: Any) -> str:
    if output.output_type == 'stream':
        return _ESCAPES.sub('', output.text)
    return '' if 'image/png' in output.data else output.data.get('text/plain', '')
