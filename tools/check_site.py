"""Check the built documentation: links lead somewhere, and nothing is loaded from elsewhere.

    mkdocs build --strict && python tools/check_site.py [FOLDER]

Exit code: 0 if all is well, 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
_LOADED = {'img': 'src', 'script': 'src', 'link': 'href', 'iframe': 'src'}


class _Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {''}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what one tag has."""
        found = {key: value or '' for key, value in attrs}
        self.anchors.add(found.get('id', ''))
        if tag == 'a' and 'href' in found:
            self.links.append(found['href'])
        elif (key := _LOADED.get(tag)) and key in found and found.get('rel') not in ('prev', 'next', 'canonical'):
            self.loaded.append(found[key])


def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text(encoding='utf-8'))
    return page


def problems(folder: Path) -> list[str]:
    """What is wrong with the site in `folder`, one line each."""
    wrong = []
    pages = {file: _read(file) for file in sorted(folder.rglob('*.html'))}
    for file, page in pages.items():
        name = file.relative_to(folder)
        if file.name == '404.html':  # served in place of any page, so its addresses are absolute
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ('data', 'mailto'):
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    wrong.append(f'{name}: loads {link} from elsewhere')
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / 'index.html' if target.is_dir() else target
            if not target.is_file() or not target.is_relative_to(folder):
                wrong.append(f'{name}: {link} leads nowhere')
            elif target.suffix == '.html' and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f'{name}: {link} has no such anchor')
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', nargs='?', type=Path, default=ROOT / 'build/site')
    folder = parser.parse_args(argv).folder.resolve()
    if not (folder / 'index.html').is_file():
        parser.error(f'no site at {folder}; `mkdocs build --strict` makes one')
    found = problems(folder)
    print('\n'.join(found) or f'{len(list(folder.rglob("*.html")))} pages, all links lead somewhere')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
