"""Write `model_cards/`, or check that it is what the registry, the facts and the results say.

    python tools/make_cards.py [--check] [FAMILY ...]

Exit code: 0 if written, or if all is up to date; 1 if --check finds a difference.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from cards.pages import family_files

import visionssm  # noqa: F401  registers the models
from visionssm.weights.published import FAMILIES

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('families', nargs='*', metavar='FAMILY', help=f'default: all; {", ".join(FAMILIES)}')
    parser.add_argument('--check', action='store_true', help='write nothing')
    args = parser.parse_args(argv)
    if unknown := [name for name in args.families if name not in FAMILIES]:
        parser.error(f'unknown family {unknown[0]!r}; allowed are {", ".join(FAMILIES)}')
    stale = []
    for key in args.families or FAMILIES:
        for name, text in family_files(key, ROOT / 'results').items():
            file = ROOT / 'model_cards' / name
            old = file.read_text(encoding='utf-8') if file.exists() else ''
            if old == text:
                continue
            stale.append(name)
            if args.check:
                changes = difflib.unified_diff(old.splitlines(), text.splitlines(), name, 'now', lineterm='', n=0)
                print('\n'.join(list(changes)[:12]))
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding='utf-8')
                print(f'wrote {file.relative_to(ROOT)}')
    if args.check and stale:
        print(f'{len(stale)} files are not up to date: python tools/make_cards.py')
    return 1 if args.check and stale else 0


if __name__ == '__main__':
    sys.exit(main())
