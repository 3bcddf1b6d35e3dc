"""Backbones for mmdet, mmseg and mmpretrain: `type='visionssm.Backbone'`.

In a config, before anything of theirs is imported:

    custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

This also stands in for the compiled operators that mmcv-lite does not have; see `mmcv_ext`.
"""

from .requirements import check_requirements, find_forks

check_requirements()
find_forks()

from . import mmcv_ext  # noqa: E402  before anything imports mmdet or mmseg
from . import weights as weights  # noqa: E402  registers a scheme of addresses
from .backbone import Backbone  # noqa: E402
from .optim import LayerDecayConstructor  # noqa: E402
from .registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS  # noqa: E402

__all__ = ['MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'Backbone', 'LayerDecayConstructor', 'mmcv_ext']
