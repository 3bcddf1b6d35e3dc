"""mkdocs's hooks: pages that stand elsewhere in the repository, and parts of pages that are made from the source.

A page asks for a part with a line `<!-- made: NAME -->`; `PARTS` says what makes it.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tools'))

from visionssm.weights.published import FAMILIES  # noqa: E402
from website import choosing, errors, reference, speed, tutorials, walks  # noqa: E402

PARTS = {
    'accuracy plots': choosing.plots,
    'between operators': speed.between_table,
    'command line': reference.command_line,
    'export speed': speed.export_table,
    'forms': speed.forms_table,
    'large model speed': speed.large_table,
    'large model speed, AVX2': partial(speed.models_table, 'avx2/large_cpu.json'),
    'licences': choosing.licences,
    'model table': choosing.table_of_models,
    'recipe keys': reference.recipe_keys,
    'model speed': speed.models_table,
    'model speed, AVX2': partial(speed.models_table, 'avx2/models_cpu.json'),
    'resolution': speed.resolution_table,
    'resolution, AVX2': partial(speed.resolution_table, 'avx2/resolution_cpu.json'),
    'scan orders': reference.scan_orders,
    'scan speed': speed.scan_table,
    'scan speed, AVX2': partial(speed.scan_table, 'avx2/scan_cpu.json'),
    'training speed': speed.training_table,
    'training speed, AVX2': partial(speed.models_table, 'avx2/training_cpu.json'),
}
# pages that stand elsewhere
PAGES = {
    'changelog.md': ROOT / 'CHANGELOG.md',
    'openmmlab.md': ROOT / 'visionssm/openmmlab/README.md',
    **{f'cards/{key}.md': ROOT / 'model_cards' / f'{key}.md' for key in FAMILIES},
}
_MARK = re.compile(r'^<!-- made: (.+) -->$', re.M)
_TUTORIAL = re.compile(
    r'(?<=\]\()((?:tutorials/)?[\w-]+)\.py(?=\))'
)  # a link that leads somewhere in the repository, too


def on_config(config: Any) -> Any:
    """Put the cards into the menu, and pages that it does not name."""
    models = next(part['Models'] for part in config.nav if 'Models' in part)
    models.append({'Cards': [{family.title: f'cards/{key}.md'} for key, family in FAMILIES.items()]})
    named = repr(config.nav)
    if more := [file.name for file in sorted((ROOT / 'docs').glob('*.md')) if f"'{file.name}'" not in named]:
        config.nav.insert(-1, {'More': more})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that are not in `docs/`."""
    for name, file in PAGES.items():
        text = file.read_text(encoding='utf-8').replace('](docs/', '](')  # as the site has it
        files.append(File.generated(config, name, content=text))
    for file in sorted((ROOT / 'model_cards/img').glob('*.svg')):
        files.append(File.generated(config, f'cards/img/{file.name}', content=file.read_bytes()))
    for name, content in (reference.assets() | walks.files() | tutorials.files()).items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace the marks of a page."""
    if page.file.src_uri == 'troubleshooting.md':
        markdown = errors.fill(markdown)
    markdown = _TUTORIAL.sub(r'\1.md', markdown)
    return _MARK.sub(lambda mark: PARTS[mark[1]](), markdown)
