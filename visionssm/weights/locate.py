"""Find weights, whatever they are named by, and read them: the one way for timm, OpenMMLab, tools and commands."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from types import SimpleNamespace

from timm.models import PretrainedCfg, get_pretrained_cfg, is_model
from torch import Tensor

from .checkpoint import load_checkpoint, unwrap
from .download import fetch, weights_file
from .published import container_of, find_published, published_files
from .records import Published

_HUB = re.compile(r'hf-hub:(?P<hf_hub_id>[^/]+/[^/]+)(?:/(?P<hf_hub_filename>.+))?')


def locate(source: str | Path | Published | PretrainedCfg, cache_dir: str | Path | None = None) -> Path:
    """The file with the weights that `source` names, downloaded and verified if it is not here yet.

    Args:
        source: A file; a folder with `model.safetensors`; `hf-hub:owner/name[@revision][/file]`; a URL; a tag of
            `visionssm list`; a name of the authors' detectors and segmenters; or the record or timm's configuration of
            such a file. A `Path` is a file or a folder, never a name.
        cache_dir: Folder to use instead of the caches of the Hub and of torch.

    Raises:
        ValueError: If it is none of these, or only a person can get the file.
        FileNotFoundError: If a `Path` does not exist.
        WeightsError: If the file can't be downloaded, or is not what was published.
    """
    if isinstance(source, PretrainedCfg):
        return _configured(source, cache_dir)
    if isinstance(source, Published):
        return _published(source, cache_dir)
    path = Path(source).expanduser()
    if path.is_dir():
        return weights_file(path)
    if isinstance(source, Path) or path.is_file():
        return path
    if match := _HUB.fullmatch(source):
        return fetch(SimpleNamespace(**match.groupdict(), url=None), cache_dir)
    if source.startswith(('http://', 'https://')):
        return fetch(SimpleNamespace(hf_hub_id=None, hf_hub_filename=None, url=source), cache_dir)
    if file := find_published(source):
        return _published(file, cache_dir)
    if is_model(source):  # timm's own, and models that nobody published weights of
        return _configured(get_pretrained_cfg(source, allow_unregistered=False), cache_dir)
    close = difflib.get_close_matches(source, [file.name for file in published_files()], 3)
    raise ValueError(
        f'checkpoint {source!r} is not a file, hf-hub:owner/name, a URL or the name of any weights; '
        f'closest names are {", ".join(close) or "none"}'
    )


def read(
    source: str | Path | Published | PretrainedCfg, model: str, cache_dir: str | Path | None = None
) -> dict[str, Tensor]:
    """The weights that `source` names, under the names that the file gives them.

    Args:
        source: As for `locate`.
        model: Registered name of the model that they are for: of a training checkpoint, its authors say which weights
            they evaluate. '': not known.
        cache_dir: As for `locate`.

    Raises:
        ValueError: As `locate`, or if the file can't be read.
        FileNotFoundError: As `locate`.
        WeightsError: As `locate`.
    """
    if isinstance(source, PretrainedCfg) and source.state_dict and source.source != 'hf-hub':
        return unwrap(source.state_dict, prefer=container_of(model))
    return load_checkpoint(locate(source, cache_dir), prefer=container_of(model))


def by_hand_only(config: PretrainedCfg) -> str:
    """For errors: where a person gets weights that nothing else can download; '' if there are none."""
    file = find_published(f'{config.architecture}.{config.tag}')
    return f' but those to download by hand: {file.page}' if file and file.by_hand else ''


def _published(file: Published, cache_dir: str | Path | None) -> Path:
    if file.by_hand:
        raise ValueError(f'{file.name} has no weights to download; {"; ".join(file.remarks)}')
    return fetch(file, cache_dir)


def _configured(config: PretrainedCfg, cache_dir: str | Path | None) -> Path:
    """In timm's order of sources."""
    if config.source == 'local-dir':
        return weights_file(config.file)
    from_hub = config.source == 'hf-hub'  # the name is a repository's: the caller wants what is on its branch now
    if config.file and not from_hub:
        return Path(config.file)
    if config.hf_hub_id or config.url:
        return fetch(config, cache_dir, latest=from_hub)
    raise ValueError(
        f'{config.architecture} has no weights{by_hand_only(config)}; what is in a file of yours loads by '
        "pretrained_cfg_overlay={'file': ...}"
    )
