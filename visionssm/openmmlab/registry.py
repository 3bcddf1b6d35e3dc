"""Registries of the scope `visionssm` below mmengine's root: mmdet, mmseg and mmpretrain find what they hold."""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from mmengine.registry import Registry
from timm.layers import LayerNorm2d

from visionssm.layers import FinerLevels, ResamplePyramid, SimplePyramid

_WHERE = {'scope': 'visionssm', 'locations': ['visionssm.openmmlab']}

MODELS = Registry('model', parent=ROOT_MODELS, **_WHERE)
OPTIM_WRAPPER_CONSTRUCTORS = Registry('optimizer wrapper constructor', parent=ROOT_CONSTRUCTORS, **_WHERE)

for layer in (LayerNorm2d, FinerLevels, ResamplePyramid, SimplePyramid):
    MODELS.register_module(module=layer)
