"""The card of a folder that holds a model in timm's layout, and what the pages of families have in common with it."""

from __future__ import annotations

import importlib.resources
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from visionssm.catalog.models import sketch
from visionssm.weights.published import family_of, find_published, model_facts
from visionssm.weights.records import Family, license_text

_TAGS = ['image-classification', 'timm', 'visionssm', 'mamba', 'state-space-model']
_HEAD = 'import timm\nimport torch\nimport visionssm  # registers the models'
_LICENSES = {
    'mit': 'MIT',
    'apache-2.0': 'Apache-2.0',
    'nvidia-source-code-nc': 'NVIDIA Source Code License-NC (non-commercial)',
    'unknown': 'none stated',
}
_PLACE = 'local-dir:FOLDER'
_PLACE_HINT = f'For `{_PLACE}` put the folder, or `hf-hub:OWNER/NAME` if it is on the Hub.'


def for_hub(card: str, repo_id: str) -> str:
    """A card of a folder, with examples that load from the repository."""
    return card.replace(f'{_PLACE_HINT}\n\n', '').replace(_PLACE, f'hf-hub:{repo_id}')


def folder_card(config: Mapping[str, Any], about: str = '') -> str:
    """The card of a model in timm's layout.

    Args:
        config: Of its `config.json`, with `provenance` if `visionssm convert` wrote it.
        about: Markdown on whatever else a user must know.
    """
    name = config['architecture']
    pretrained, classes = config['pretrained_cfg'], config['num_classes']
    provenance, quantization = config.get('provenance', {}), config.get('quantization', {})
    family = family_of(name)
    model = sketch(name, **{**config.get('model_args', {}), 'num_classes': classes})
    title = f'{name}.{pretrained["tag"]}' if pretrained.get('tag') else name
    top1, notes = _known(name, pretrained.get('tag'))
    notes = notes or pretrained.get('notes') or ()
    if quantization:
        top1 = None  # of other weights
        notes = (*notes, 'quantised weights load where torchao is installed: `pip install "visionssm[quantize]"`')
    facts = {
        'parameters': f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M',
        'input': 'x'.join(map(str, pretrained['input_size'])),
        'classes': str(classes or 'none: a backbone'),
        'scan order': f'`{model.scan}`' if hasattr(model, 'scan') else '',
        'top-1 on ImageNet-1k, reported by the authors': '' if top1 is None else f'{top1} %',
        'quantised by `visionssm quantize`': str(quantization.get('method', '')),
        'licence of the weights': license_text(pretrained.get('license') or 'unknown'),
        'original code': pretrained.get('origin_url', ''),
    }
    parts = [
        front_matter(
            pretrained.get('license') or 'unknown',
            family.arxiv if family else '',
            link=pretrained.get('origin_url', ''),
            imagenet=top1 is not None,
            name=title,
            results=None if top1 is None else [_reported_result(top1, pretrained['origin_url'])],
        ),
        f'# {title}',
        wrap(
            f'{family.title if family else name} in the layout of [timm](https://github.com/huggingface/'
            'pytorch-image-models); `import visionssm` registers the architecture, for timm and for transformers.'
        ),
        table(['', ''], [[fact, value] for fact, value in facts.items() if value]),
    ]
    parts += filter(None, ['\n'.join(wrap(f'- {note}', '  ') for note in notes), about])
    if provenance:
        parts += [
            '## Provenance',
            table(['', ''], [[name, str(value)] for name, value in provenance.items() if value]),
        ]
    parts += [
        '## Usage',
        _PLACE_HINT,
        *usage([f"'{_PLACE}'", 'pretrained=True'], model, pretrained['input_size'])[0 if classes else 1 :],
    ]
    if family:
        parts += ['## Citation', f'{origin(family)}\n\n{citation(family)}']
    return '\n\n'.join(parts) + '\n'


def _known(model: str, tag: str | None) -> tuple[float | None, tuple[str, ...]]:
    """What is known of a tag's weights: top-1 as reported, and the rest in sentences."""
    if file := tag and find_published(f'{model}.{tag}'):
        return file.metrics.get('top-1'), file.details()
    facts = model_facts(model)
    return facts.top1 if facts and tag == 'in1k' else None, ()


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


# parts of cards


def front_matter(
    license: str,
    arxiv: str = '',
    link: str = '',
    imagenet: bool = True,
    name: str | None = None,
    results: list[EvalResult] | None = None,
) -> str:
    """The YAML that a card begins with.

    Args:
        license: As the Hub names it, or one of `UNCLEAR`.
        arxiv: Number of the paper.
        link: Where a contradictory licence is explained.
        imagenet: Whether the weights were trained on ImageNet-1k.
        name: Title of the model; required with `results`.
        results: What was reported.
    """
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


def origin(family: Family) -> str:
    """Paper and code of a family, in two sentences."""
    read = [f'read at {family.commit[:8]}'] if family.commit else []
    read += [f'its branch {branch} at {commit[:8]}' for branch, commit in family.branches.items()]
    commits = f' ({", ".join(read)})' if read else ''
    written = (
        "The implementation is timm's."
        if family.borrowed
        else 'This implementation was written from the paper and from facts about that repository.'
    )
    code = f'Official code: <{family.repository}>{commits}, licence: {_LICENSES[family.license]}. {written}'
    return f'Paper: [{family.paper}](https://arxiv.org/abs/{family.arxiv}), {family.venue}.\n{wrap(code)}'


def citation(family: Family) -> str:
    """BibTeX of a family's paper, as a block of Markdown."""
    known = importlib.resources.files('visionssm.hub').joinpath('citations.bib').read_text(encoding='utf-8')
    entry = re.search(rf'^%(?: \w+)* {re.escape(family.key)}(?: \w+)*\n(.*?)^}}', known, re.M | re.S)
    made = f'@misc{{{family.key},\n  title={{{family.paper}}},\n  eprint={{{family.arxiv}}}\n}}'
    return f'```bibtex\n{f"{entry[1]}}}" if entry else made}\n```'


def usage(arguments: Sequence[str], model: nn.Module, input_size: Sequence[int]) -> list[str]:
    """Markdown of three examples.

    Args:
        arguments: Of `timm.create_model`, as source.
        model: The model, for the shapes it returns.
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


def table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(headings), *([cell.replace('|', '\\|') for cell in row] for row in rows)]
    lines.insert(1, ['---'] * len(lines[0]))
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def wrap(text: str, indent: str = '') -> str:
    """`text` in lines of at most 120 characters, all but the first after `indent`."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
