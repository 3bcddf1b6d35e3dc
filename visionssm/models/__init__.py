"""Every model family; importing this registers them with timm. Also `load_checkpoint`, which reads weights."""

from importlib import import_module as _import_module

from visionssm.weights.checkpoint import load_checkpoint as load_checkpoint
from visionssm.weights.download import WeightsError as WeightsError
from visionssm.weights.published import FAMILIES as _FAMILIES

for _family in list(_FAMILIES.values()):
    if not _family.borrowed:
        _import_module(f'.{_family.key}', __name__)
