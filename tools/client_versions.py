"""Run tests of docs/clients.md and, if they pass, write the versions they ran with into its headings.

    python tools/client_versions.py tests/clients tests/models/test_segmentation_models.py

What is not installed keeps its version: OpenMMLab has an environment of its own, and `tests/openmmlab`.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / 'docs/clients.md'
_NAMED = re.compile(r'\b([A-Za-z][\w-]*) \d+\.[\w.]*\w')


def update(text: str) -> str:
    """The page with the installed versions behind the names of packages in its headings."""
    return re.sub(r'^## .*', lambda heading: _NAMED.sub(_installed, heading[0]), text, flags=re.M)


def _installed(named: re.Match) -> str:
    try:
        return f'{named[1]} {version(named[1]).partition("+")[0]}'
    except PackageNotFoundError:
        return named[0]


def main(arguments: list[str]) -> int:
    """Run pytest with `arguments`; its exit code."""
    failed = pytest.main(arguments)
    if not failed:
        PAGE.write_text(update(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
    return failed


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
