"""Weights for a backbone, wherever they are: a file, an address or a name."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from mmengine.runner import CheckpointLoader
from timm.models import PretrainedCfg
from torch import Tensor

from visionssm.catalog.models import check_model
from visionssm.weights.checkpoint import load_checkpoint
from visionssm.weights.download import fetch, weights_file
from visionssm.weights.published import container_of, find_published
from visionssm.weights.records import Published

_HUB = re.compile(r'hf-hub:(?P<hf_hub_id>[^/]+/[^/]+)(?:/(?P<hf_hub_filename>.+))?')


def locate_weights(checkpoint: str) -> Path:
    """The file that `checkpoint` means, downloaded if it is not here yet.

    Args:
        checkpoint: A file, a folder with `model.safetensors`, 'hf-hub:owner/name[@revision][/file]', a URL, a tag of
            `visionssm list`, or a name of the authors' detectors and segmenters.

    Raises:
        ValueError: If it is none of these.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return weights_file(path)
    if path.is_file():
        return path
    if match := _HUB.fullmatch(checkpoint):
        return fetch(SimpleNamespace(**match.groupdict(), url=None))
    if checkpoint.startswith(('http://', 'https://')):
        return fetch(SimpleNamespace(hf_hub_id=None, hf_hub_filename=None, url=checkpoint))
    source = find_published(checkpoint) or _configuration(checkpoint)
    notes = source.remarks if isinstance(source, Published) else source.notes or ()
    if not (source.hf_hub_id or source.url):
        raise ValueError(f'{checkpoint} has no weights to download; {"; ".join(notes) or "give a file"}')
    return fetch(source)


def _configuration(checkpoint: str) -> PretrainedCfg:
    try:
        return check_model(checkpoint)
    except ValueError as error:
        raise ValueError(
            f'checkpoint {checkpoint!r} is not a file, hf-hub:owner/name, a URL or the name of any weights: {error}'
        ) from None


def read_weights(checkpoint: str, model_name: str = '') -> dict[str, Tensor]:
    """The weights that `checkpoint` means, found by `locate_weights`, under the names that the file gives them."""
    return load_checkpoint(locate_weights(checkpoint), prefer=container_of(model_name))


@CheckpointLoader.register_scheme(prefixes='hf-hub:')
def _load_from_hub(filename: str, map_location: str | None = None) -> dict[str, dict[str, Tensor]]:
    """For `load_from='hf-hub:...'` of mmengine's runner."""
    return {'state_dict': read_weights(filename)}


def of_backbone(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is under `backbone.`, without that; the whole if nothing is."""
    prefix = 'backbone.'
    own = {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
    return own or state_dict
