"""Write `model_cards/`, or check that it matches the registry, the facts and the results.

    python tools/make_cards.py [--check] [FAMILY ...]

Exit code: 0 if written, or if all cards are up to date; 1 if --check finds a difference.
"""

from __future__ import annotations

import argparse
import sys

from _generated import ROOT, write_or_check
from cards.pages import family_files, readme

import visionssm  # noqa: F401  registers the models
from visionssm.weights.published import FAMILIES


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('families', nargs='*', metavar='FAMILY', help=f'default: all; {", ".join(FAMILIES)}')
    parser.add_argument('--check', action='store_true', help='write nothing')
    args = parser.parse_args(argv)
    if unknown := [name for name in args.families if name not in FAMILIES]:
        parser.error(f'unknown family {unknown[0]!r}; allowed are {", ".join(FAMILIES)}')
    texts = {
        ROOT / 'model_cards' / name: text
        for key in args.families or FAMILIES
        for name, text in family_files(key, ROOT / 'results').items()
    }
    texts[ROOT / 'README.md'] = readme((ROOT / 'README.md').read_text(encoding='utf-8'))
    return write_or_check(texts, args.check, 'python tools/make_cards.py')


if __name__ == '__main__':
    sys.exit(main())
