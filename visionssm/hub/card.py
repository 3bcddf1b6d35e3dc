"""Model cards: a page per family, and one for a folder that holds a model in timm's layout."""

from __future__ import annotations

import importlib.resources
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import nn

from visionssm.catalog.models import list_rows, model_names, reported_top1, sketch
from visionssm.weights.download import published_sha256
from visionssm.weights.downstream import DOWNSTREAM, Downstream

from .diagrams import draw_blocks, draw_paths
from .families import FAMILIES, Family, family_of

UNCLEAR = ('unknown', 'contradictory')  # licences that are none
_TAGS = ['image-classification', 'timm', 'visionssm', 'mamba', 'state-space-model']
_BY_HAND = 'to download by hand: '
_IMAGENET = 50_000  # images of its validation set; nothing less reproduces a reported accuracy
_HEAD = 'import timm\nimport torch\nimport visionssm  # registers the models'


# pages of families


def family_files(key: str, results: Path) -> dict[str, str]:
    """What `model_cards/` holds of a family: file names to contents.

    Args:
        key: Of `FAMILIES`.
        results: Folder with measurements: `tools/benchmark.py`'s, and `tools/validate.py`'s in `validation/`.
    """
    family = FAMILIES[key]
    files = {f'{key}.md': _family_page(key, results), f'img/{key}_block.svg': draw_blocks(family.blocks)}
    if family.scans:
        files[f'img/{key}_scan.svg'] = draw_paths(family.scans)
    return files


def _family_page(key: str, results: Path) -> str:
    family = FAMILIES[key]
    rows = sorted(list_rows(family.pattern, cost=True), key=lambda row: float(row['params (M)']))
    order = [row['model'].partition('.')[0] for row in rows]
    names = sorted(model_names(family.pattern, tags=True), key=lambda name: order.index(name.partition('.')[0]))
    names = [name for name in names if '.' in name or get_pretrained_cfg(name).notes]  # those that were published
    licenses = {get_pretrained_cfg(name).license or 'unknown' for name in names}
    license = licenses.pop() if len(licenses) == 1 else 'unknown'
    parts = [
        _front_matter(license, family.paper[1], link=family.code[0]),
        '<!-- Written by `python tools/make_cards.py` from the registry, visionssm/hub/families.py, visionssm/_cards/ '
        'and results/. -->',
        f'# {family.title}',
        _prose(key),
        _origin(family),
        '## The block',
        f'![The block of {family.title}](img/{key}_block.svg)',
        family.legend,  # a line could begin with a plus and make a list
        '## The scan path',
        *_scan_part(key, family),
        '## Models',
        *_models_part(rows, _validations(results)),
        '## Weights',
        *_weights_part(key, names),
        '## Usage',
        *_usage_part(family),
        '## Speed',
        _speed_part(family, results),
        *(f'## {heading}\n\n{_prose(key, heading)}' for heading in ('Training recipe', 'Limits', 'Quirks', 'Citation')),
    ]
    return '\n\n'.join(parts) + '\n'


def _prose(key: str, heading: str = '') -> str:
    """A part of what is written about a family: under a heading, or before the first."""
    text = importlib.resources.files('visionssm').joinpath('_cards', f'{key}.md').read_text(encoding='utf-8')
    parts = re.split(r'^## (.+)\n', text, flags=re.M)
    return dict(zip(['', *parts[1::2]], parts[::2], strict=True))[heading].strip()


def _front_matter(
    license: str,
    arxiv: str = '',
    link: str = '',
    imagenet: bool = True,
    name: str | None = None,
    results: list[EvalResult] | None = None,
) -> str:
    contradictory = license == 'contradictory'
    data = ModelCardData(
        tags=_TAGS + ([f'arxiv:{arxiv}'] if arxiv else []),
        pipeline_tag='image-classification',
        library_name='timm',
        license='other' if contradictory else license,
        license_name=license if contradictory else None,
        license_link=link if contradictory else None,
        datasets=['imagenet-1k'] if imagenet else None,
        model_name=name,
        eval_results=results,
    )
    return f'---\n{data.to_yaml()}\n---'


def _origin(family: Family) -> str:
    title, arxiv, venue = family.paper
    url, commit, license = family.code
    written = (
        "The implementation is timm's."
        if family.pattern == 'mambaout_*'
        else 'What is here was written from the paper and from facts about that repository.'
    )
    paper = f'Paper: [{title}](https://arxiv.org/abs/{arxiv}), {venue}.'
    return f'{paper}\n' + _wrap(f'Official code: <{url}>{commit and f" ({commit})"}, licence: {license}. {written}')


def _scan_part(key: str, family: Family) -> list[str]:
    if not family.scans:
        return [f'{family.title} has none, and this is its point.']
    code = f"import timm\nimport visionssm  # registers the models\n\nmodel = timm.create_model('{family.models[0]}', "
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
        _table([*headings.values(), 'top-1 reproduced here'], cells),
        _wrap(
            'Parameters and multiply-adds are counted here, at the input given (`visionssm list --markdown`); those '
            "called reported are the authors' figures, whose GFLOPs are multiply-adds. Top-1 is on ImageNet-1k's "
            'validation set, in percent. Reproduced stays empty until `python tools/validate.py` has run on all of its '
            '50,000 images and the result lies in `results/validation`.'
        ),
    ]
    nano = [f'`{row["model"]}`' for row in rows if row['model'].endswith('_nano')]
    if nano:
        parts.append(f'Not of the paper: {", ".join(nano)}, small enough to train on a CPU.')
    remarks = [_wrap(f'- `{row["model"].partition(".")[0]}`: {row["remark"]}.', '  ') for row in rows if row['remark']]
    if remarks:
        parts.append('Where a figure of the authors (marked \\*) is not ours:\n\n' + '\n'.join(remarks))
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


def _weights_part(key: str, names: Sequence[str]) -> list[str]:
    rows, about = [], {}
    licenses = set()
    for name in names:
        config = get_pretrained_cfg(name)
        licenses.add(config.license or 'unknown')
        notes = [note for note in config.notes or () if not note.startswith('top-1 ')]
        if digest := published_sha256(config):
            notes.append(f'SHA-256 {digest}')
        for note in notes:
            if not note.startswith(_BY_HAND):
                about.setdefault(note, []).append(f'`{name}`')
        rows.append([f'`{name}`', _source_link(config), config.license or 'unknown', _preprocessing(config)])
    parts = [_table(['weights', 'source', 'licence, as stated', 'evaluation'], rows)]
    if licenses & set(UNCLEAR):
        parts.append('Weights whose licence is unknown or contradictory are not mirrored.')
    if about:
        lines = (f'- {"All" if len(of) == len(names) > 1 else ", ".join(of)}: {note}.' for note, of in about.items())
        parts.append('\n'.join(_wrap(line, '  ') for line in lines))
    parts.append(
        'timm downloads these files; `visionssm convert` takes the original ones.'
        if key == 'mambaout'
        else _wrap(
            'A download is kept, and checked: against its SHA-256 where one is known, else against the one recorded at '
            'its first use (`visionssm weights`). What a file holds is never run, and must fit name by name.'
        )
    )
    downstream = [entry for entry in DOWNSTREAM.values() if family_of(entry.model) == key]
    if downstream:
        parts.append('Detectors and segmenters of the authors, for the OpenMMLab configs, with what they report:')
        cells = [
            [
                f'`{entry.name}`',
                ', '.join(f'{name} {value:.1f}' for name, value in entry.metrics.items()),
                _source_link(entry),
            ]
            for entry in downstream
        ]
        parts.append(_table(['weights', 'reported by the authors', 'source'], cells))
    return parts


def _source_link(entry: PretrainedCfg | Downstream) -> str:
    if entry.hf_hub_id:
        repo, _, revision = entry.hf_hub_id.partition('@')
        shown = ', '.join(filter(None, (repo, entry.hf_hub_filename, revision[:7])))
        return f'[{shown}](https://huggingface.co/{repo})'
    if entry.url:
        return f'[{entry.url.rpartition("/")[2]}]({entry.url})'
    by_hand = (note.removeprefix(_BY_HAND) for note in entry.notes or () if note.startswith(_BY_HAND))
    url = next(by_hand, '')
    return f'[by hand]({url.split()[0]})' if url.startswith('https://') else url or 'by hand'


def _preprocessing(config: PretrainedCfg) -> str:
    side = config.input_size[-1]
    return f'{config.interpolation}, resize {int(side / config.crop_pct)}, crop {side}'


def _usage_part(family: Family) -> list[str]:
    name = family.models[0]
    config = get_pretrained_cfg(name)
    if config.has_weights:
        return usage([repr(name), 'pretrained=True'], sketch(name), config.input_size)
    arguments = [repr(name), 'pretrained=True', f"pretrained_cfg_overlay={{'file': '{name}.pth'}}"]
    return [
        f'`{name}.pth` is the file of the authors, downloaded by hand.',
        *usage(arguments, sketch(name), config.input_size),
    ]


def usage(arguments: Sequence[str], model: nn.Module, input_size: Sequence[int]) -> list[str]:
    """Markdown of three examples.

    Args:
        arguments: Of `timm.create_model`, as source.
        model: The model, for the shapes that it gives.
        input_size: Channels, height and width.
    """
    channels, height, width = input_size
    levels = [model.feature_info[i] for i in (range(4) if len(model.feature_info) == 4 else range(-3, 0))]
    shapes = ''.join(
        f'\n# (1, {level["num_chs"]}, {-(-height // level["reduction"])}, {-(-width // level["reduction"])})'
        for level in levels
    )
    examples = {
        'Classify an image': f"""{_HEAD}
from PIL import Image

model = {_call(arguments)}
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)

image = Image.open('photo.jpg').convert({'L' if channels == 1 else 'RGB'!r})
with torch.inference_mode():
    probabilities = model(transform(image).unsqueeze(0)).softmax(1)
print(probabilities.topk(5))""",
        'Feature maps, for detection or segmentation': f"""{_HEAD}

backbone = {_call([*arguments, 'features_only=True'])}
with torch.inference_mode():
    maps = backbone(torch.randn(1, {channels}, {height}, {width}))
for features in maps:
    print(tuple(features.shape)){shapes}""",
        'An embedding': f"""{_HEAD}

model = {_call([*arguments, 'num_classes=0'])}
with torch.inference_mode():
    tokens = model.forward_features(torch.randn(1, {channels}, {height}, {width}))
    embedding = model.forward_head(tokens, pre_logits=True)
print(tuple(embedding.shape))
# (1, {model.head_hidden_size})""",
    }
    return [f'{title}:\n\n```python\n{code}\n```' for title, code in examples.items()]


def _call(arguments: Sequence[str]) -> str:
    inside = ', '.join(arguments)
    if len(inside) < 80:
        return f'timm.create_model({inside}).eval()'
    return 'timm.create_model(' + ''.join(f'\n    {argument},' for argument in arguments) + '\n).eval()'


def _speed_part(family: Family, results: Path) -> str:
    names = set(model_names(family.pattern))
    rows = [
        [f'`{name}`', *cells, f'`results/{file.name}`']
        for file in sorted(results.glob('*.json'))
        for name, *cells in _speeds(json.loads(file.read_text(encoding='utf-8')))
        if name in names
    ]
    if rows:
        headings = ['model', 'image side', 'images/s, inference', 'images/s, training', 'measured on', 'raw data']
        return _table(headings, rows)
    return _wrap(
        'Not measured yet: `python tools/benchmark.py models` measures on a CPU, `python tools/gpu_report.py` on a GPU.'
        + (' The scan alone is in the README.' if family.scans else '')
    )


def _speeds(report: Any) -> Iterator[tuple[str, str, str, str, str]]:
    """Model, image side, images/s of inference and training, and on what: of `benchmark.py` and `gpu_report.py`."""
    machine = report.get('machine') or report.get('environment') or {}
    where = ', '.join(f'{key} {value}' for key, value in machine.items() if value != 'not installed')
    for row in report.get('results', ()):
        if 'images_per_second' in row:
            name, _, side = row['model'].partition('@')
            yield name, side, f'{row["images_per_second"]:.1f}', '', where
    for row in report.get('models', ()):
        inference, training = (
            f'{row[what]["images_per_s"]:.0f}' if 'images_per_s' in row[what] else ''
            for what in ('inference', 'training')
        )
        yield row['model'], str(row['size']), inference, training, f'{where}, fp16 AMP, batch {row["batch"]}'


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(headings), *([cell.replace('|', '\\|') for cell in row] for row in rows)]
    lines.insert(1, ['---'] * len(lines[0]))
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _wrap(text: str, indent: str = '') -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# cards of folders

_PLACE = 'local-dir:FOLDER'
_PLACE_HINT = f'For `{_PLACE}` put the folder, or `hf-hub:OWNER/NAME` if it is on the Hub.'


def for_hub(card: str, repo_id: str) -> str:
    """A card of a folder, with examples that load from the repository."""
    return card.replace(f'{_PLACE_HINT}\n\n', '').replace(_PLACE, f'hf-hub:{repo_id}')


def folder_card(config: Mapping[str, Any], about: str = '') -> str:
    """The card of a model in timm's layout.

    Args:
        config: Of its `config.json`, with `provenance` if `visionssm convert` wrote it.
        about: Markdown on what else a user must know.
    """
    name = config['architecture']
    pretrained, classes = config['pretrained_cfg'], config['num_classes']
    provenance = config.get('provenance', {})
    key = family_of(name)
    family = FAMILIES.get(key)
    model = sketch(name, **{**config.get('model_args', {}), 'num_classes': classes})
    title = f'{name}.{pretrained["tag"]}' if pretrained.get('tag') else name
    notes = [note for note in pretrained.get('notes') or () if not note.startswith('top-1 ')]
    top1 = reported_top1(PretrainedCfg(architecture=name, tag=pretrained.get('tag'), notes=pretrained.get('notes')))
    facts = {
        'parameters': f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M',
        'input': 'x'.join(map(str, pretrained['input_size'])),
        'classes': str(classes or 'none: a backbone'),
        'scan order': f'`{model.scan}`' if hasattr(model, 'scan') else '',
        'top-1 on ImageNet-1k, reported by the authors': '' if top1 is None else f'{top1} %',
        'licence of the weights': pretrained.get('license') or 'unknown',
        'original code': pretrained.get('origin_url', ''),
    }
    parts = [
        _front_matter(
            pretrained.get('license') or 'unknown',
            family.paper[1] if family else '',
            link=pretrained.get('origin_url', ''),
            imagenet=top1 is not None,
            name=title,
            results=None if top1 is None else [_reported_result(top1, pretrained['origin_url'])],
        ),
        f'# {title}',
        _wrap(
            f'{family.title if family else name} in the layout of [timm](https://github.com/huggingface/'
            'pytorch-image-models); `import visionssm` registers the architecture.'
        ),
        _table(['', ''], [[fact, value] for fact, value in facts.items() if value]),
    ]
    parts += filter(None, ['\n'.join(_wrap(f'- {note}', '  ') for note in notes), about])
    if provenance:
        parts += [
            '## Provenance',
            _table(['', ''], [[name, str(value)] for name, value in provenance.items() if value]),
        ]
    parts += [
        '## Usage',
        _PLACE_HINT,
        *usage([f"'{_PLACE}'", 'pretrained=True'], model, pretrained['input_size'])[0 if classes else 1 :],
    ]
    if family:
        parts += ['## Citation', f'{_origin(family)}\n\n{_prose(key, "Citation")}']
    return '\n\n'.join(parts) + '\n'


def _reported_result(top1: float, source: str) -> EvalResult:
    return EvalResult(
        task_type='image-classification',
        dataset_type='imagenet-1k',
        dataset_name='ImageNet-1k',
        dataset_split='validation',
        metric_type='accuracy',
        metric_value=top1,
        metric_name='top-1 in percent, reported by the authors',
        verified=False,
        source_name='the authors',
        source_url=source,
    )
