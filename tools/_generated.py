"""What the tools share that write this repository's files from facts, or check that they are current."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from visionssm.files import write_whole

ROOT = Path(__file__).resolve().parents[1]


def write_or_check(texts: Mapping[Path, str], check: bool, command: str) -> int:
    """Write what has changed, or print what would change.

    Args:
        texts: Text of every file.
        check: Write nothing.
        command: What writes them, for the message.

    Returns:
        Exit code: 0 if written, or if all files are current; 1 if a check finds a difference.
    """
    stale = 0
    for file, text in texts.items():
        old = file.read_text(encoding='utf-8') if file.exists() else ''
        if old == text:
            continue
        stale += 1
        name = file.relative_to(ROOT).as_posix()
        if check:
            changes = difflib.unified_diff(old.splitlines(), text.splitlines(), name, 'now', lineterm='', n=0)
            print('\n'.join(list(changes)[:12]))
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text)
            print(f'wrote {name}')
    if check and stale:
        print(f'{stale} files are not up to date: {command}')
    return 1 if check and stale else 0
