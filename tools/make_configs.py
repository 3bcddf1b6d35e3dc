"""Write what follows from facts in `configs/`, or check it: results in headers, metafiles, `model-index.yml`.

    python tools/make_configs.py [--check]

A header is the first line of a config; what precedes its last colon is written by hand. This needs the packages of
`visionssm[openmmlab]`, as detectors and segmenters are built to count their parameters.

Exit code: 0 if written, or if all files are current; 1 if --check finds a difference.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from _generated import ROOT, write_or_check

from visionssm.catalog.configs import list_configs
from visionssm.weights.published import FAMILIES, find_published, model_facts, reported_metrics

METHODS = {
    'MaskRCNN': 'Mask R-CNN',
    'CascadeRCNN': 'Cascade Mask R-CNN',
    'RetinaNet': 'RetinaNet',
    'UPerHead': 'UPerNet',
    'FPNHead': 'Semantic FPN',
    'ASPPHead': 'DeepLabv3',
    'PSPHead': 'PSPNet',
}
TASKS = {'box AP': 'Object Detection', 'mask AP': 'Instance Segmentation'}
DATASETS = {'coco': 'COCO', 'ade20k': 'ADE20K'}
# trained here as a demonstration, without a paper behind them
OWN = 'digits'


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--check', action='store_true', help='write nothing')
    args = parser.parse_args(argv)
    return write_or_check(texts(), args.check, 'python tools/make_configs.py')


def texts() -> dict[Path, str]:
    """All files that this tool writes, and their text."""
    written = {path: recipe(path) for path in list_configs('train/*') if path.stem != OWN}
    folders: dict[Path, list[dict[str, Any]]] = {}
    for path in configs():
        entry = describe(path, build(path))
        written[path] = header(path, entry)
        folders.setdefault(path.parent, []).append(entry)
    for folder, entries in folders.items():
        written[folder / 'metafile.yml'] = metafile(folder, entries)
    return {**written, ROOT / 'model-index.yml': index(folders)}


def configs() -> list[Path]:
    """The detectors and segmenters."""
    return [path for path in list_configs('mm*/*') if path.parent.name != OWN]


def build(path: Path) -> Any:
    """The detector or segmenter of a config, without memory for its weights."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    import visionssm.openmmlab  # noqa: F401  before mmdet and mmseg

    config = Config.fromfile(path)
    library = config.default_scope
    __import__(f'{library}.utils', fromlist=['_']).register_all_modules(init_default_scope=False)
    with torch.device('meta'), DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(config.model)
    model.cfg = config
    return model


def weights_name(stem: str, backbone: str) -> str:
    """What the authors' file for a config is called, if there is one: 'vmamba_tiny_s1l8.mask_rcnn_1x_coco'."""
    method, *_, schedule, dataset = re.sub(r'-\d+x\d+$', '', stem).split('_')
    return f'{backbone}.{method.replace("-", "_")}_{schedule.rpartition("-")[2]}_{dataset}'


def describe(path: Path, model: Any) -> dict[str, Any]:
    """The entry of a config in a metafile."""
    backbone = model.backbone.model_name
    name = weights_name(path.stem, backbone)
    schedule, dataset = name.split('_')[-2:]
    loop = model.cfg.train_cfg
    if 'max_epochs' in loop or schedule.endswith('e'):
        length = {'Epochs': loop.get('max_epochs') or int(schedule.removesuffix('e'))}
    else:
        length = {'Iterations': loop.max_iters}
    metrics = dict(reported_metrics(name))
    if dataset == 'coco':
        results = [{'Task': TASKS[k], 'Dataset': DATASETS[dataset], 'Metrics': {k: v}} for k, v in metrics.items()]
    else:
        results = [{'Task': 'Semantic Segmentation', 'Dataset': DATASETS[dataset], 'Metrics': metrics}]
    file = find_published(name)
    return {
        'Name': path.stem,
        'In Collection': collection(path.parent)['Name'],
        'Config': path.relative_to(ROOT).as_posix(),
        'Metadata': {
            'Training Data': DATASETS[dataset],
            **length,
            'Architecture': [backbone, METHODS[type(getattr(model, 'decode_head', model)).__name__]],
            'Parameters (M)': round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        },
        **({'Results': results} if metrics else {}),
        **({'Weights': file.download_url} if file and not file.by_hand else {}),
    }


def collection(folder: Path) -> dict[str, Any]:
    """The entry of a family in the metafile of a folder such as `mmdet/vmamba`."""
    family = FAMILIES[folder.name]
    kind, data = {'mmdet': ('detectors', 'COCO'), 'mmseg': ('segmenters', 'ADE20K')}[folder.parent.name]
    return {
        'Name': f'{family.title} {kind}',
        'Metadata': {'Training Data': data, 'Architecture': [family.title]},
        'Paper': {'Title': family.paper, 'URL': f'https://arxiv.org/abs/{family.arxiv}'},
    }


def metafile(folder: Path, entries: Iterable[Mapping[str, Any]]) -> str:
    """The metafile of a folder: a few lines for each of its configs."""
    first = collection(folder)
    lines = [
        '# Written by `python tools/make_configs.py`. Results are those that the authors report of their own code.',
        'Collections:',
        _flow(first, ['Name', 'Metadata'], ['Paper']),
        'Models:',
        *(_flow(entry, ['Name', 'In Collection'], ['Config', 'Metadata'], ['Results', 'Weights']) for entry in entries),
    ]
    return '\n'.join(lines) + '\n'


def _flow(entry: Mapping[str, Any], *rows: list[str]) -> str:
    """An item of a YAML list in braces, over as many lines as there are rows of keys."""
    parts = [{key: entry[key] for key in row if key in entry} for row in rows]
    texts = [yaml.safe_dump(part, default_flow_style=True, sort_keys=False, width=10**6) for part in parts if part]
    return '- {' + ',\n   '.join(text.strip()[1:-1] for text in texts) + '}'


def index(folders: Iterable[Path]) -> str:
    """`model-index.yml`, where `mim` starts."""
    lines = [f'  - {(folder / "metafile.yml").relative_to(ROOT).as_posix()}' for folder in folders]
    return '\n'.join(['# Written by `python tools/make_configs.py`.', 'Import:', *lines]) + '\n'


def header(path: Path, entry: Mapping[str, Any]) -> str:
    """The text of a config, its header with what is reported now."""
    text = path.read_text(encoding='utf-8')
    title = re.match(r'"""([^"\n]*): [^":\n]*\."""\n', text)
    if not title:
        raise ValueError(f'{path}: the first line is not a docstring of the form """What it is: result."""')
    metrics = [pair for result in entry.get('Results', ()) for pair in result['Metrics'].items()]
    said = ', '.join(f'{name} {value}' for name, value in metrics)
    said = f'{said} by the authors' if said else 'no reported result'
    return f'"""{title[1]}: {said}."""\n{text[title.end() :]}'


def recipe(path: Path) -> str:
    """The text of a recipe with the accuracy that is reported now."""
    text = path.read_text(encoding='utf-8')
    model = yaml.safe_load(text)['model']
    top1 = reported_metrics(model).get('top-1') or getattr(model_facts(model), 'top1', None)
    said = f'{top1} % top-1' if top1 else 'none'
    return re.sub(r'^reported: (?:[\d.]+ % top-1|none)', f'reported: {said}', text, flags=re.M)


if __name__ == '__main__':
    sys.exit(main())
