"""Check pages in a Chromium: what `visionssm viz` writes, and the built documentation.

    mkdocs build --strict && python tools/check_browser.py [FOLDER]

Without a network, on a phone and a desk, light and dark: no error in the console, no request that fails or leads
elsewhere, nothing wider than the window, legible text, and controls that change what is shown. Extras `browser`, `viz`
and `demo`.

Exit code: 0 if all is well, 1 if something is wrong, 3 if there is no Chromium (see tools/_browser.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import sklearn.datasets
from _browser import NoBrowserError, start_browser
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from visionssm.cli import main as visionssm

ROOT = Path(__file__).resolve().parents[1]
_PICTURES = [Path(sklearn.datasets.__file__).parent / f'images/{name}.jpg' for name in ('china', 'flower')]
_LEAST_CONTRAST = 4.5  # of text, WCAG 2.2, level AA
_WAIT = 10_000  # ms for something to change
# of colours as the browser states them; the background of the first element that has one
_COLOURS = """
() => {
  const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const luminance = colour => {
    pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    const parts = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(x => x / 255);
    const [r, g, b] = parts.map(x => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const text = document.querySelector('article p, p');
  let under = text;
  const clear = element => /rgba.*, 0\\)/.test(getComputedStyle(element).backgroundColor);
  while (under.parentElement && clear(under)) under = under.parentElement;
  return [getComputedStyle(under).backgroundColor, getComputedStyle(text).color].map(luminance);
}
"""
_WIDEST = """
width => {
  const own = element => (element.id ? '#' + element.id : '.' + element.className);
  const wide = [...document.querySelectorAll('body *')].filter(x => x.getBoundingClientRect().right > width + 1);
  return wide.slice(-1).map(x => x.tagName.toLowerCase() + own(x))[0] ?? 'the page';
}
"""


class Screen(NamedTuple):
    """What a page is shown on."""

    width: int
    height: int
    dark: bool

    @property
    def phone(self) -> bool:
        """Whether it is touched; there is a mouse otherwise."""
        return self.width < 600


SCREENS = [Screen(*size, dark) for size in ((390, 844), (1440, 1000)) for dark in (False, True)]


class Visit:
    """Pages in a window, one after the other, and what is wrong with them."""

    def __init__(self, page: Page, screen: Screen) -> None:
        self.page, self.screen, self.where, self.wrong = page, screen, '', []
        page.set_default_timeout(_WAIT)
        page.on('console', lambda said: said.type in ('error', 'warning') and self.note(f'{said.type}: {said.text}'))
        page.on('pageerror', lambda error: self.note(f'error: {error}'))
        page.on('requestfailed', lambda request: self.failed(request.url, request.failure))
        page.on('request', lambda request: self.request(request.url))

    def open(self, name: str, file: Path, check: Callable[[Visit], None]) -> None:
        """Open a page and check it."""
        self.where = f'{name}, {self.screen.width} pixels, {"dark" if self.screen.dark else "light"}'
        self.page.goto(file.as_uri())
        try:
            check(self)
        except TimeoutError as error:
            self.note(str(error).splitlines()[0])

    def note(self, fault: str) -> None:
        """Something is wrong."""
        self.wrong.append(f'{self.where}: {fault}')

    def failed(self, url: str, why: str | None) -> None:
        """Something cannot be loaded."""
        if why != 'net::ERR_ABORTED':  # by the next page
            self.note(f'{url} fails: {why}')

    def request(self, url: str) -> None:
        """Something is loaded."""
        if not url.startswith(('file:', 'data:', 'blob:')):
            self.note(f'loads {url} from elsewhere')

    def check_looks(self) -> None:
        """Width, colours, pictures."""
        wide = self.page.evaluate('document.documentElement.scrollWidth')
        if wide > self.screen.width:
            self.note(f'{wide} pixels wide, for {self.page.evaluate(_WIDEST, self.screen.width)}')
        background, ink = self.page.evaluate(_COLOURS)
        if (background < 0.2) != self.screen.dark:
            self.note(f'the luminance of the background is {background:.2f}')
        high, low = max(background, ink), min(background, ink)
        if (contrast := (high + 0.05) / (low + 0.05)) < _LEAST_CONTRAST:
            self.note(f'text has a contrast of {contrast:.1f}, less than {_LEAST_CONTRAST}')
        for image in self.page.evaluate(
            '[...document.images].filter(x => x.complete && !x.naturalWidth).map(x => x.alt)'
        ):
            self.note(f'no picture of {image!r}')

    def changes(self, what: str, act: Callable[[], object], *looks: str) -> None:
        """Act, and wait until each of some expressions has another value than before."""
        before = [self.page.evaluate(look) for look in looks]
        act()
        for look, value in zip(looks, before, strict=True):
            self.until(f'{what} does not change {look}', '([look, value]) => (0, eval)(look) !== value', [look, value])

    def until(self, fault: str, true: str, argument: object = None) -> None:
        """Wait until an expression is true, or note the fault."""
        try:
            self.page.wait_for_function(true, arg=argument, timeout=_WAIT)
        except TimeoutError:
            self.note(fault)

    def point(self, selector: str, across: float, down: float) -> None:
        """Tap a place of an element or move the mouse there, in shares of its size."""
        element = self.page.locator(selector)
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        x, y = box['x'] + across * box['width'], box['y'] + down * box['height']
        if self.screen.phone:
            self.page.touchscreen.tap(x, y)
        else:
            self.page.mouse.move(x, y)


def _pixels(canvas: str) -> str:
    return f"document.querySelector('{canvas}').toDataURL()"


def _text(selector: str) -> str:
    return f"document.querySelector('{selector}').textContent"


def check_report(visit: Visit) -> None:
    """The slider, the patch pointed at, the choice of an image."""
    page, reads, where = visit.page, _pixels('#reads'), _text('#where')
    visit.until('shows no layer', "document.getElementById('maps').children.length > 0")
    visit.check_looks()
    visit.changes('a patch pointed at', lambda: visit.point('#over', 0.2, 0.3), reads, where, _pixels('#mark'))
    visit.changes('a click', lambda: page.locator('#over').click(position={'x': 150, 'y': 100}), reads, where)
    layers = [_text('#name'), reads, "document.getElementById('maps').innerHTML"]
    visit.changes('the slider', lambda: page.locator('#layer').press('ArrowRight'), *layers)
    visit.changes('the end of the slider', lambda: page.locator('#layer').press('End'), *layers)
    photo = "document.getElementById('photo').src"
    visit.changes('another image', lambda: page.locator('#image').select_option('1'), photo, reads)


def check_playground(visit: Visit) -> None:
    """The orders, sizes, directions and views, the animation, the cell pointed at."""
    page = visit.page
    left, right = (f'#walks .panels section:nth-child({k})' for k in (1, 2))
    both = [_pixels(f'{panel} canvas') for panel in (left, right)]
    visit.until('draws nothing', "document.querySelectorAll('#walks .directions button').length > 1")
    visit.check_looks()
    for panel, pixels, other, order in ((left, *both, 'spiral'), (right, *both[::-1], 'morton')):
        beside = page.evaluate(other)
        value = page.locator(f'{panel} option', has_text=order).first.get_attribute('value')
        choose = page.locator(f'{panel} select')
        visit.changes(f'order {order}', lambda c=choose, v=value: c.select_option(v), pixels, _text(f'{panel} .about'))
        if page.evaluate(other) != beside:
            visit.note(f'order {order} changes the panel beside it')
    said = _text(f'{left} .said')
    visit.changes('a direction', page.locator(f'{left} .directions button').nth(1).click, both[0])
    for label in ('Height', 'Width'):
        slider = page.get_by_label(label).and_(page.locator('[type=range]'))
        visit.changes(label.lower(), lambda s=slider: s.fill('9'), *both, said)
    for height, width in (('64', '64'), ('12', '12'), ('32', '12')):  # large maps are square
        page.get_by_label('Height').and_(page.locator('[type=number]')).fill(height)
        if (found := page.get_by_label('Width').and_(page.locator('[type=number]')).input_value()) != width:
            visit.note(f'the width is {found} beside a height of {height}, not {width}')
    visit.changes('a cell pointed at', lambda: visit.point(f'{left} canvas', 0.5, 0.4), both[0], said)
    for view in ('distance', 'walk'):
        visit.changes(f'view {view}', page.locator(f'#walks [value={view}]').check, *both, _text('#walks .legend'))
    count, play = _text('#walks .count'), page.locator('#walks .time button')
    visit.changes('play', play.click, count, both[0])
    visit.changes('time', lambda: None, count, *both)
    play.click()
    shown = [page.evaluate(look) for look in (count, *both)]
    page.wait_for_timeout(100)
    if shown != [page.evaluate(look) for look in (count, *both)]:
        visit.note('a pause does not stop the animation')
    visit.changes('the first step', lambda: page.get_by_label('Step').press('Home'), count, *both)


def check_choosing(visit: Visit) -> None:
    """The legend of the plots, the order of the table."""
    visit.check_looks()
    faint = "[...document.querySelectorAll('.plots .family')].filter(x => getComputedStyle(x).opacity < 0.5).length"
    visit.changes('a family chosen', visit.page.locator('.plots .legend button').first.click, faint)
    head = visit.page.locator('.models th').nth(1)
    visit.changes('a click on the head of the table', head.click, _text('.models tbody'))


def check_start(visit: Visit) -> None:
    """A search, and the switch between light and dark."""
    visit.check_looks()
    page, found = visit.page, _text('.md-search-result__list')
    page.keyboard.press('/')
    visit.changes('a search', lambda: page.locator('.md-search__input').press_sequentially('hilbert'), found)
    page.keyboard.press('Escape')
    scheme = 'document.body.dataset.mdColorScheme'
    for _ in range(2):  # there and back
        visit.changes('the switch', page.locator('label[for^=__palette]:visible').first.click, scheme)


CHECKS = {'playground.html': check_playground, 'choosing.html': check_choosing, 'index.html': check_start}


def problems(browser: Browser, report: Path, site: Path) -> Iterator[str]:
    """What is wrong with the pages, one line each."""
    others = {str(file.relative_to(site)): file for file in sorted(site.rglob('*.html')) if file.name != '404.html'}
    checked = {name: (others.pop(name), check) for name, check in CHECKS.items()}
    checked['report.html'] = (report, check_report)
    for screen in SCREENS:
        window = browser.new_context(
            viewport={'width': screen.width, 'height': screen.height},
            color_scheme='dark' if screen.dark else 'light',
            offline=True,
            is_mobile=screen.phone,
            has_touch=screen.phone,
        )
        visit = Visit(window.new_page(), screen)
        for name, (file, check) in checked.items():
            visit.open(name, file, check)
        if screen == SCREENS[0]:  # where a page is first too wide
            for name, file in others.items():
                visit.open(name, file, Visit.check_looks)
        window.close()
        yield from visit.wrong


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', nargs='?', type=Path, default=ROOT / 'build/site')
    site = parser.parse_args(argv).folder.resolve()
    if not (site / 'playground.html').is_file():
        parser.error(f'no site at {site}; `mkdocs build --strict` makes one')
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        try:
            browser = start_browser(playwright.chromium)
        except NoBrowserError as error:
            print(f'NOT CHECKED IN A BROWSER: there is none.\n{error}')
            return 3
        except ValueError as error:
            parser.error(str(error))
        with redirect_stdout(sys.stderr):
            visionssm(['viz', 'test_vmamba', *map(str, _PICTURES), '--random', '--layers', '3', '--output', folder])
        found = list(problems(browser, Path(folder) / 'report.html', site))
        browser.close()
    print('\n'.join(found) or f'pages are well on {len(SCREENS)} screens ({time.perf_counter() - start:.0f} s)')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
