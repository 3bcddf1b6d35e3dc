"""The page of a family in `model_cards/`, made from the registry, the drawings, the prose and the measurements."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, get_pretrained_cfg

from visionssm.catalog.models import list_rows, model_names, sketch
from visionssm.hub.card import citation, front_matter, origin, table, usage, wrap
from visionssm.scans import get_scan
from visionssm.weights.published import FAMILIES, find_published
from visionssm.weights.records import UNCLEAR, Family, Published, license_text

from .diagrams import Route, draw_blocks, draw_paths
from .drawings import DRAWINGS, Drawing

_PROSE = Path(__file__).with_name('prose')
_IMAGENET = 50_000  # images of its validation set; nothing less reproduces a reported accuracy


def family_files(key: str, results: Path) -> dict[str, str]:
    """What `model_cards/` holds for a family: file names to contents.

    Args:
        key: Of `FAMILIES`. A family without a drawing or prose gets a page without these parts.
        results: Folder with measurements: `tools/benchmark.py`'s, and `tools/validate.py`'s in `validation/`.
    """
    rows = sorted(list_rows(f'{key}*', cost=True), key=lambda row: float(row['params (M)']))
    drawing = DRAWINGS.get(key) or _drawing(rows)
    files = {f'{key}.md': _family_page(key, drawing, rows, results)}
    if drawing.blocks:
        files[f'img/{key}_block.svg'] = draw_blocks(drawing.blocks)
    if drawing.scans:
        files[f'img/{key}_scan.svg'] = draw_paths(drawing.scans)
    return files


def _drawing(rows: Sequence[Mapping[str, str]]) -> Drawing:
    """The drawing of a family without one of its own: its smallest model, and how that one walks."""
    example = rows[0]['model'].partition('.')[0]
    scan = getattr(sketch(example), 'scan', None)
    directions = range(get_scan(scan).directions) if scan else ()
    return Drawing(example, {}, {f'direction {k}': Route(scan, k, 8) for k in directions})


def _family_page(key: str, drawing: Drawing, rows: Sequence[Mapping[str, str]], results: Path) -> str:
    family, prose = FAMILIES[key], _prose(key)
    order = [row['model'].partition('.')[0] for row in rows]
    names = sorted(model_names(f'{key}*', tags=True), key=lambda name: order.index(name.partition('.')[0]))
    names = [name for name in names if '.' in name or get_pretrained_cfg(name).notes]  # the published ones
    licenses = {get_pretrained_cfg(name).license or 'unknown' for name in names}
    license = licenses.pop() if len(licenses) == 1 else 'unknown'
    parts = {
        '': [prose[''], origin(family)],
        'The block': [f'![The block of {family.title}](img/{key}_block.svg)', drawing.legend] if drawing.blocks else [],
        'The scan path': _scan_part(key, family, drawing),
        'Models': _models_part(rows, _validations(results)),
        'Weights': _weights_part(family, names) if names else [],
        'Usage': _usage_part(drawing.example),
        'Speed': [_speed_part(family, drawing, results)],
        **{heading: [prose.get(heading, '')] for heading in ('Training recipe', 'Limits', 'Quirks')},
        'Citation': [citation(family)],
    }
    lines = [
        front_matter(license, family.arxiv, link=family.repository),
        '<!-- Written by `python tools/make_cards.py` from the registry, tools/cards/ and results/. -->',
        f'# {family.title}',
    ]
    for heading, part in parts.items():
        if any(part):
            lines += [heading and f'## {heading}', *part]
    return '\n\n'.join(filter(None, lines)) + '\n'


def _prose(key: str) -> dict[str, str]:
    """The prose about a family, by heading; '': what precedes the first."""
    file = _PROSE / f'{key}.md'
    text = file.read_text(encoding='utf-8') if file.exists() else ''
    parts = re.split(r'^## (.+)\n', text, flags=re.M)
    return {heading: part.strip() for heading, part in zip(['', *parts[1::2]], parts[::2], strict=True)}


def _scan_part(key: str, family: Family, drawing: Drawing) -> list[str]:
    if not drawing.scans:
        return [f'{family.title} has none, and that is its point.'] if drawing.blocks else []
    code = f"import timm\nimport visionssm  # registers the models\n\nmodel = timm.create_model('{drawing.example}', "
    return [
        f'![The walks of {family.title} over a map](img/{key}_scan.svg)',
        f"Any other order is an argument (`visionssm scans` lists them):\n\n```python\n{code}scan='spiral')\n```",
    ]


def _models_part(
    rows: Sequence[Mapping[str, str]], validations: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    headings = {
        'model': 'model',
        'params (M)': 'parameters (M)',
        'params reported (M)': 'parameters, reported',
        'GMACs': 'multiply-adds (G)',
        'GFLOPs reported': 'GFLOPs, reported',
        'input': 'input',
        'top-1 reported': 'top-1 reported by the authors',
    }
    cells = [
        [
            f'`{row["model"].partition(".")[0]}`',
            *(row[column] for column in list(headings)[1:]),
            '; '.join(map(_reproduced, validations.get(row['model'], ()))),
        ]
        for row in rows
    ]
    parts = [
        table([*headings.values(), 'top-1 reproduced here'], cells),
        wrap(
            'Parameters and multiply-adds are counted here, at the input given (`visionssm list --markdown`); those '
            "called reported are the authors' figures, whose GFLOPs are multiply-adds. Top-1 is on ImageNet-1k's "
            'validation set, in percent. Reproduced stays empty until `python tools/validate.py` has run on all 50,000 '
            'images and the result is in `results/validation`.'
        ),
    ]
    nano = [f'`{row["model"]}`' for row in rows if row['model'].endswith('_nano')]
    if nano:
        parts.append(f'Not of the paper: {", ".join(nano)}, small enough to train on a CPU.')
    remarks = [wrap(f'- `{row["model"].partition(".")[0]}`: {row["remark"]}.', '  ') for row in rows if row['remark']]
    if remarks:
        parts.append('Where a figure of the authors (marked \\*) differs from ours:\n\n' + '\n'.join(remarks))
    return parts


def _reproduced(result: Mapping[str, Any]) -> str:
    options = [f'at {result["img_size"]}', result['dtype']]
    options += [f'{option} {result[option]}' for option in ('scan', 'checkpoint') if result[option]]
    return f'{result["top1"]:.2f} ({", ".join(options)}, {result["date"]})'


def _validations(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Measured accuracies on all of ImageNet's validation set, by the tag that was measured."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((results / 'validation').glob('*.json')):
        result = json.loads(file.read_text(encoding='utf-8'))
        if result['images'] == _IMAGENET and result['num_classes'] == 1000:
            found.setdefault(result['model'], []).append(result)
    return found


def _weights_part(family: Family, names: Sequence[str]) -> list[str]:
    rows, about = [], {}
    licenses = set()
    for name in names:
        config, file = get_pretrained_cfg(name), find_published(name)
        licenses.add(config.license or 'unknown')
        for detail in file.details(page=not file.by_hand) if file else ():
            about.setdefault(detail, []).append(f'`{name}`')
        if file and file.sha256:
            about[f'SHA-256 {file.sha256}'] = [f'`{name}`']
        rows.append(
            [
                f'`{name}`',
                _source_link(file or config),
                license_text(config.license or 'unknown'),
                _preprocessing(config),
            ]
        )
    parts = [table(['weights', 'source', 'licence, as stated', 'evaluation'], rows)]
    if licenses & set(UNCLEAR):
        parts.append('Weights whose licence is unknown or contradictory are not mirrored.')
    if about:
        lines = (f'- {"All" if len(of) == len(names) > 1 else ", ".join(of)}: {note}.' for note, of in about.items())
        parts.append('\n'.join(wrap(line, '  ') for line in lines))
    parts.append(
        'timm downloads these files; `visionssm convert` takes the original ones.'
        if family.borrowed
        else wrap(
            'A download is kept and checked: against its published SHA-256 if there is one, else the one recorded at '
            'first use (`visionssm weights`). Nothing in a file is ever run, and its names must match one by one.'
        )
    )
    if downstream := [file for file in family.files if file.method]:
        parts.append("The authors' detectors and segmenters, for the OpenMMLab configs, with the results they report:")
        cells = [
            [
                f'`{file.name}`',
                ', '.join(f'{name} {value:.1f}' for name, value in file.metrics.items()),
                _source_link(file),
            ]
            for file in downstream
        ]
        parts.append(table(['weights', 'reported by the authors', 'source'], cells))
    return parts


def _source_link(entry: PretrainedCfg | Published) -> str:
    if entry.hf_hub_id:
        repo, _, revision = entry.hf_hub_id.partition('@')
        shown = ', '.join(filter(None, (repo, entry.hf_hub_filename, revision[:7])))
        return f'[{shown}](https://huggingface.co/{repo})'
    return f'[{entry.url.rpartition("/")[2]}]({entry.url})' if entry.url else f'[by hand]({entry.page})'


def _preprocessing(config: PretrainedCfg) -> str:
    side = config.input_size[-1]
    how = '' if config.crop_mode == 'center' else f' ({config.crop_mode})'
    return f'{config.interpolation}, resize {int(side / config.crop_pct)}{how}, crop {side}'


def _usage_part(name: str) -> list[str]:
    config = get_pretrained_cfg(name)
    if config.has_weights or not config.notes:
        weights = ['pretrained=True'] if config.has_weights else []
        return usage([repr(name), *weights], sketch(name), config.input_size)
    arguments = [repr(name), 'pretrained=True', f"pretrained_cfg_overlay={{'file': '{name}.pth'}}"]
    return [
        f"`{name}.pth` is the authors' file, downloaded by hand.",
        *usage(arguments, sketch(name), config.input_size),
    ]


def _speed_part(family: Family, drawing: Drawing, results: Path) -> str:
    names = set(model_names(f'{family.key}*'))
    rows = [
        [f'`{name}`', *cells, f'`results/{file.name}`']
        for file in sorted(results.glob('*.json'))
        for name, *cells in _speeds(json.loads(file.read_text(encoding='utf-8')))
        if name in names
    ]
    if rows:
        headings = ['model', 'image side', 'images/s, inference', 'images/s, training', 'measured on', 'raw data']
        return table(headings, rows)
    return wrap(
        'Not measured yet: `python tools/benchmark.py models` measures on a CPU, `python tools/gpu_report.py` on a GPU.'
        + (' The scan alone is in docs/op.md.' if drawing.scans else '')
    )


def _speeds(report: Any) -> Iterator[tuple[str, str, str, str, str]]:
    """Model, image side, images/s of inference and training, and the machine: of `benchmark.py` and `gpu_report.py`."""
    machine = report.get('machine') or report.get('environment') or {}
    where = _listed(machine)
    for row in report.get('results', ()):
        if 'images_per_second' in row:
            name, _, side = row['model'].partition('@')
            speed, training = f'{row["images_per_second"]:.1f}', row.get('what') == 'training'
            how = _listed(machine | {key: row[key] for key in ('threads', 'batch') if key in row})
            yield name, side, '' if training else speed, speed if training else '', how
    for row in report['models'] if isinstance(report.get('models'), list) else ():
        inference, training = (
            f'{row[what]["images_per_s"]:.0f}' if 'images_per_s' in row[what] else ''
            for what in ('inference', 'training')
        )
        yield row['model'], str(row['size']), inference, training, f'{where}, fp16 AMP, batch {row["batch"]}'


def _listed(facts: Mapping[str, Any]) -> str:
    return ', '.join(f'{key} {value}' for key, value in facts.items() if value != 'not installed')


def _example(family: Family) -> str:
    """The model that stands for a family."""
    return next((name for name in family.models if 'tiny' in name or 'l1' in name), next(iter(family.models)))


def readme(text: str) -> str:
    """The text of the README with its table of families as the records have it now.

    Raises:
        ValueError: If the text has no such table.
    """
    headings = ['family', 'paper', 'models', 'top-1 reported', 'licence of the weights']
    every, rows = list_rows(), []
    for key, family in FAMILIES.items():
        models = [row for row in every if row['model'].partition('.')[0] in family.models]
        own = [row for row in models if row['weights'] != 'no'] or models
        scores = [float(row['top-1 reported']) for row in own if row['top-1 reported']]
        ends = sorted({min(scores), max(scores)}) if scores else []
        rows.append(
            [
                f'[{family.title}](model_cards/{key}.md)',
                f'[arXiv:{family.arxiv}](https://arxiv.org/abs/{family.arxiv})',
                f'{len(own)}, such as `{_example(family)}`',
                f'{" to ".join(map(str, ends))} %' if ends else 'not known',
                ', '.join(sorted({row['licence'] for row in own if row['licence']})) or 'none published',
            ]
        )
    lines = r'^\| family \|.*\n(?:\|.*\n)+'
    found, count = re.subn(lines, table(headings, rows) + '\n', text, count=1, flags=re.M)
    if not count:
        raise ValueError('README.md has no table of families, whose first line starts with "| family"')
    return found
