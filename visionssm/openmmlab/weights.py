"""Names and addresses of weights in OpenMMLab's own settings, such as `load_from`."""

from __future__ import annotations

from mmengine.runner import CheckpointLoader
from torch import Tensor

from visionssm.weights.locate import read


@CheckpointLoader.register_scheme(prefixes='hf-hub:')
def _load_from_hub(filename: str, map_location: str | None = None) -> dict[str, dict[str, Tensor]]:
    """For `load_from='hf-hub:...'` of mmengine's runner."""
    return {'state_dict': read(filename, '')}
