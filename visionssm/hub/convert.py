"""Convert any checkpoint to a folder in timm's layout: pickle-free weights, configuration, card, provenance."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import PretrainedCfg
from torch import Tensor, nn

from visionssm.catalog.models import check_model, is_ours, sketch, tag_record, takes_argument
from visionssm.files import check_replaceable, read_object, read_small, replaced_folder
from visionssm.models.builder import checkpoint_filter
from visionssm.version import __version__
from visionssm.weights.checkpoint import check_fit, inside_backbone, strip_backbone
from visionssm.weights.download import sha256
from visionssm.weights.locate import read
from visionssm.weights.published import family_of, published_files
from visionssm.weights.records import Published

from .card import folder_card
from .folder import write_model

FILES = ('README.md', 'config.json', 'model.safetensors', 'backbone_extra.safetensors')
_EXTRA = FILES[-1]
# what detectors and segmenters add to a backbone: norms and projections of its maps, pyramids, PlainMamba's ViT-Adapter
_ADDED = re.compile(
    r'(outnorm|outproj|norm_layer|ad_norm|fpn)\d+\.|out(norm|_map)_\d+\.|(spm|interactions|up|rope)\.|level_embed$'
)
_NORM = 'norm.'  # the final norm, which detectors do not have
# how upstream's detectors and segmenters of Vim and LBVim differ shows in the names of their weights
_SIGNS = (
    ('class_token', False, lambda names: 'cls_token' not in names),
    ('rotary', True, lambda names: any(name.startswith('rope.') for name in names)),
    ('norm_layer', 'layernorm', lambda names: 'layers.0.norm.bias' in names or 'blocks.0.norm.bias' in names),
)


@dataclass(frozen=True)
class Converted:
    """What a conversion found and did.

    Attributes:
        folder: Where the model is.
        num_classes: Classes; 0: the file held a backbone.
        release: The published file it is, and how that is known; '' if it is not a known one.
        license: Of the weights.
        left_out: Parts of the file that are not in the folder.
        extra: Weights of the backbone that are in a separate file.
        fresh: Weights missing from the file, which keep the values of a new model.
    """

    folder: Path
    num_classes: int
    release: str
    license: str
    left_out: tuple[str, ...]
    extra: tuple[str, ...]
    fresh: tuple[str, ...]


def convert(
    checkpoint: Path,
    name: str,
    output: Path,
    model_args: Mapping[str, Any] | None = None,
    source: str = '',
    license: str = '',
) -> Converted:
    """Write `model.safetensors`, `config.json` and `README.md`; the folder appears at the end, whole or not at all.

    A file without a classifier, such as a detector's or segmenter's, becomes a backbone: a model of 0 classes. Whatever
    else its backbone has learned (output norms, adapters) goes into `backbone_extra.safetensors` under its old names.

    Args:
        checkpoint: Anything that `load_checkpoint` reads: upstream's format or ours.
        name: Registered name, with or without a tag.
        output: Folder to write; the result of an earlier conversion is replaced.
        model_args: Arguments of the model that differ from its defaults, as JSON values. Classes, image channels, and
            how upstream's detectors and segmenters differ are taken from the file.
        source: Where the file comes from.
        license: Of the weights, as the Hub names it; '': that of the release, if the file is one.

    Raises:
        ValueError: If the file can't be read or does not fit the model, or the folder holds something else.
        OSError: If there is no such file, or the folder can't be written.
    """
    config = check_model(name)
    if license and not re.fullmatch(r'[a-z0-9.-]+', license):
        raise ValueError(f'license is {license!r}; allowed are identifiers of the Hub, such as apache-2.0 or mit')
    check_folder(output)
    model_args = dict(model_args or {})
    base = name.partition('.')[0]
    state_dict = read(checkpoint, base)

    dense = any(key.startswith('backbone.') for key in state_dict)
    left_out = tuple(sorted({_part(key) for key in state_dict.keys() - inside_backbone(state_dict).keys()}))
    own = {key.removeprefix('model.'): x for key, x in strip_backbone(state_dict).items()}
    family = family_of(base)
    if dense and family and family.key in ('vim', 'lbvim'):
        plain = sketch(base)
        signs = {arg: value for arg, value, shows in _SIGNS if takes_argument(plain, arg) and shows(own)}
        model_args = {**signs, **model_args}
    extra = {key: x.contiguous() for key, x in own.items() if _ADDED.match(key)}
    own = {key: x for key, x in own.items() if key not in extra}
    shape_args = _shape_args(own, base, config, model_args)

    model, fresh = _load(checkpoint, own, base, config, {**model_args, **shape_args})
    digest = sha256(checkpoint)  # only now: what does not fit the model may be of any size
    entry = _release(checkpoint.name, digest, base, config, backbone=not shape_args['num_classes'])
    license = license or (entry and entry[0].license) or 'unknown'
    provenance = {
        'source': source or (f'{entry[0].download_url}, going by its {entry[1].partition(" ")[0]}' if entry else ''),
        'file': checkpoint.name,
        'size': f'{checkpoint.stat().st_size} bytes',
        'SHA-256': digest,
        'release': f'{entry[0].name}, recognised by its {entry[1]}' if entry else '',
        'left out': ', '.join(left_out),
        'in a separate file': _EXTRA if extra else '',
        'left as in a new model': ', '.join(fresh),
        'converted': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        'by': ' '.join(filter(None, ('visionssm', __version__, _commit()))),
    }
    provenance = {key: value for key, value in provenance.items() if value}
    _describe(model, config, entry is not None, license)

    with replaced_folder(output) as folder:
        stored_args = {**model_args, **shape_args}
        del stored_args['num_classes']
        write_model(model, folder, {'provenance': provenance}, stored_args)
        if extra:
            save_file(extra, folder / _EXTRA)
        stored = read_object(folder / 'config.json')
        (folder / 'README.md').write_text(folder_card(stored, _about(extra, fresh)), encoding='utf-8')
        _check_loads(folder, model)
    return Converted(
        output, model.num_classes, provenance.get('release', ''), license, left_out, tuple(extra), tuple(fresh)
    )


def _part(key: str) -> str:
    """The part of a detector or segmenter a weight belongs to; PlainMamba's averages have names without dots."""
    return 'ema_*' if key.startswith('ema_') else key.partition('.')[0]


def check_folder(output: Path) -> None:
    """Raise unless `output` can be written and holds nothing but an earlier conversion.

    Raises:
        ValueError: If it is a file, or holds something else.
    """
    check_replaceable(output, FILES, 'conversion')
    config = output / 'config.json'
    names = list(output.iterdir()) if output.exists() else []
    if names and not (config.is_file() and 'provenance' in read_small(config)):
        raise ValueError(f'{output} holds a model that no conversion wrote; give another folder')


def _shape_args(
    state_dict: Mapping[str, Tensor], name: str, config: PretrainedCfg, model_args: Mapping[str, Any]
) -> dict[str, Any]:
    """Classes and channels, as in the file; refuses an image size that is not the file's."""
    try:
        model = sketch(name, **{'num_classes': config.num_classes, **model_args})
    except (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f'{name} cannot be made with {dict(model_args)}: {error}') from error
    found = checkpoint_filter(type(model))(dict(state_dict), model)
    heads = (config.classifier,) if isinstance(config.classifier, str) else config.classifier
    classifier = found.get(f'{heads[0]}.weight')
    shapes = {'num_classes': 0 if classifier is None else classifier.shape[0]}
    stem = found.get(f'{config.first_conv}.weight')
    if stem is not None and stem.ndim == 4 and stem.shape[1] != config.input_size[0]:
        shapes['in_chans'] = stem.shape[1]
    before, after = state_dict.get('pos_embed'), found.get('pos_embed')
    if before is not None and after is not None and before.shape != after.shape and 'img_size' not in model_args:
        side = math.isqrt(before.shape[1])
        pixels = side * model.feature_info[-1]['reduction']
        raise ValueError(
            f'position embeddings of the file are for {before.shape[1]} tokens, those of {name} for {after.shape[1]}: '
            f'give the image size of the file (img_size={pixels} if square), or that of {name} to resample them'
        )
    return shapes


def _load(
    checkpoint: Path, state_dict: dict[str, Tensor], name: str, config: PretrainedCfg, args: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    """The model with all weights, and which of them the file does not have."""
    overlay = {'num_classes': args['num_classes'], 'input_size': _input_size(config, args)}
    if args['num_classes'] and is_ours(name):  # the public way: it knows which of a file's weights upstream evaluates
        overlay['file'] = str(checkpoint)
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args).eval(), []
    model = timm.create_model(name, pretrained_cfg_overlay=overlay, **args).eval()
    found = checkpoint_filter(type(model))(dict(state_dict), model)
    optional = {} if args['num_classes'] else {_NORM: 'the final norm, which detectors do not have'}
    check_fit(found, model, optional)
    missing = [key for key in model.state_dict() if key not in found]
    model.load_state_dict(found, strict=False)  # that it fits has been checked
    return model, missing


def _input_size(config: PretrainedCfg, args: Mapping[str, Any]) -> tuple[int, int, int]:
    channels, height, width = config.input_size
    side = args.get('img_size', (height, width))
    height, width = (side, side) if isinstance(side, int) else side
    return args.get('in_chans', channels), height, width


def _release(file: str, digest: str, name: str, config: PretrainedCfg, backbone: bool) -> tuple[Published, str] | None:
    """The published file that this is, and how it was recognised; None if it is none that is known."""
    for entry in [entry for entry in published_files(name) if entry.method] if backbone else [tag_record(config)]:
        if entry.sha256 and entry.sha256 == digest:
            return entry, 'SHA-256'
        if not entry.sha256 and file and file == entry.download_url.rpartition('/')[2]:
            return entry, 'name alone: its SHA-256 is not known'
    return None


def _commit() -> str:
    """Commit of the source tree this runs from, if any: an installed package only has a version."""
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists():
        return ''
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a tree owned by somebody else
        return ''


def _describe(model: nn.Module, config: PretrainedCfg, released: bool, license: str) -> None:
    """Make the stored configuration describe the file, not the tag's weights."""
    notes = config.notes if released and model.num_classes else ()
    model.pretrained_cfg.update(license=license, notes=tuple(notes or ()))
    if not (released and model.num_classes):
        model.pretrained_cfg['tag'] = ''


def _about(extra: Mapping[str, Tensor], fresh: list[str]) -> str:
    parts = []
    if fresh:
        parts.append(
            f'The file had no {", ".join(f"`{name}`" for name in fresh)}: they are left as in a new model. '
            'Feature maps do not need them.'
        )
    if extra:
        tops = sorted({name.partition('.')[0] for name in extra})
        parts.append(
            f'`{_EXTRA}` holds what the detector or segmenter adds to the backbone, under the names of the file: '
            f'{", ".join(tops)}. Maps of the backbone pass through output norms before its head reads them.'
        )
    return '\n\n'.join(parts)


def _check_loads(folder: Path, model: nn.Module) -> None:
    if is_ours(model.pretrained_cfg['architecture']):
        loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    else:  # of its own models, timm before 1.0.29 can't read the safetensors of a folder
        loaded = load_file(folder / 'model.safetensors')
    expected = model.state_dict()
    if loaded.keys() != expected.keys() or not all(torch.equal(x, loaded[name]) for name, x in expected.items()):
        raise RuntimeError(f'the model read back from {folder} is not the one that was written')
