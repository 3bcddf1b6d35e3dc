"""Any model of the package as a backbone of OpenMMLab's detectors, segmenters and classifiers."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import timm
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionssm.catalog.models import check_model, sketch
from visionssm.layers import ScanSpec
from visionssm.models.adapter import PlainMambaAdapter
from visionssm.models.dense import DenseModel, dense_state_dict
from visionssm.weights.checkpoint import check_fit, strip_backbone
from visionssm.weights.locate import read

from .registry import MODELS


@MODELS.register_module()
class Backbone(DenseModel, BaseModule):
    """Maps of a model's levels, (B, C, H, W), for images of any size.

    Where a model can't take a size, images are padded right and below with zeros, and the maps cut back to the size
    that the image gives: H / reduction, rounded up.

    Args:
        model_name: Registered name, such as 'vmamba_tiny_s1l8'; `visionssm list` has them.
        out_indices: Stages (pyramids) or blocks (models of one resolution) whose maps are wanted, rising.
        out_norm: Norm every map by a LayerNorm of its own, `outnorm{index}`, as the authors of VMamba and MSVMamba do.
        out_channels: Project every map to as many channels first; None: do not.
        scan: A scan order other than the model's: name, dict or JSON string.
        drop_path_rate: Stochastic depth of the last block; None: the model's default.
        frozen_stages: The stem and as many stages (pyramids) or blocks are neither trained nor updated; 0: the stem
            alone; -1: nothing.
        with_cp: Recompute blocks in the backward pass instead of keeping their activations.
        norm_eval: Keep BatchNorm layers at their running statistics in training.
        adapter: Arguments of `PlainMambaAdapter`, to put one around the model; its four maps are the levels.
        init_cfg: `dict(type='Pretrained', checkpoint=...)` with a file, 'hf-hub:owner/name', a URL, a tag as
            `visionssm list` shows it ('vmamba_tiny_s1l8.in1k'), or a name of the authors' detectors and segmenters
            ('vmamba_tiny_s1l8.mask_rcnn_1x_coco'). Weights may be ours or upstream's, of a classifier, detector or
            segmenter; they are loaded strictly.
        **model_args: Further arguments of the model, such as `img_size`.

    Raises:
        ValueError: If the model, a level or an argument does not exist; the message lists those that do.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = False,
        out_channels: int | None = None,
        scan: ScanSpec | None = None,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_eval: bool = False,
        adapter: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **model_args: Any,
    ) -> None:
        optional = {'scan': scan, 'drop_path_rate': drop_path_rate}
        model = _create(model_name, {**model_args, **{k: v for k, v in optional.items() if v is not None}})
        if adapter is not None:
            model = PlainMambaAdapter(model, **adapter)
        super().__init__(model, out_indices, out_norm, out_channels)
        self.model_name = model_name
        self.init_cfg = _checked_init(init_cfg)
        self.norm_eval = norm_eval
        self.frozen = self._freeze(frozen_stages)
        model.set_grad_checkpointing(with_cp)

    def _freeze(self, stages: int) -> list[nn.Module]:
        groups = group_parameters(self.model, self.model.group_matcher(coarse=True))
        if type(stages) is not int or not -1 <= stages <= max(groups):
            raise ValueError(f'frozen_stages is {stages!r}; allowed are -1..{max(groups)}')
        for name in (name for group, names in groups.items() if group <= stages for name in names):
            self.model.get_parameter(name).requires_grad_(False)
        own = [(module, list(module.parameters())) for module in self.model.modules()]
        return [module for module, params in own if params and not any(p.requires_grad for p in params)]

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen parts stay in evaluation mode, and BatchNorm with `norm_eval`."""
        super().train(mode)
        held = [m for m in self.modules() if isinstance(m, _BatchNorm)] if self.norm_eval else []
        for module in [*self.frozen, *held]:
            module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to maps (B, D, H / reduction, W / reduction), rounded up unless patches overlap."""
        height, width = x.shape[-2:]
        down, right = self._padded(height) - height, self._padded(width) - width
        if not (down or right):
            return super().forward(x)
        maps = super().forward(F.pad(x, (0, right, 0, down)))
        return tuple(
            y[..., : math.ceil(height / step), : math.ceil(width / step)].contiguous()
            for y, step in zip(maps, self.reductions, strict=True)
        )

    def _padded(self, side: int) -> int:
        """The least side from `side` on that the model takes without leaving pixels out; timm's own models take all."""
        return self.model.whole_side(side) if hasattr(self.model, 'whole_side') else side

    def init_weights(self) -> None:
        """Load what `init_cfg` names; without it, the model keeps its own initialisation.

        Raises:
            ValueError: If the weights belong to another model or do not fit; the message says how.
        """
        if self.is_init:
            return
        if self.init_cfg is not None:
            self.load_weights(self.init_cfg['checkpoint'])
        self.is_init = True

    def load_weights(self, checkpoint: str) -> None:
        """Load weights strictly; what only the classifier needs is left out.

        Args:
            checkpoint: As in `init_cfg`.

        Raises:
            ValueError: If the weights belong to another model or do not fit; the message says how.
        """
        weights = dense_state_dict(strip_backbone(read(checkpoint, self.model_name)), self)
        left_out = sorted(self.removed & {name.removeprefix('model.') for name in weights})
        weights = {name: x for name, x in weights.items() if name.removeprefix('model.') not in self.removed}
        expected = set(self.state_dict()) - set(self.added)
        common = len(expected & set(weights))
        if common < len(expected) / 2:
            raise ValueError(
                f'{checkpoint} holds weights of a model other than {self.model_name} ({common} of {len(expected)} '
                'names match): name their model as model_name, or give another checkpoint'
            )
        new = [name for name in self.added if name not in weights]
        last = f'outnorm{self.out_indices[-1]}.'  # PlainMamba's classifiers have one: their final norm
        if any(name in weights and not name.startswith(last) for name in self.added):
            new = []
        check_fit(weights, self, dict.fromkeys(new, 'not in a classifier'))
        self.load_state_dict(weights, strict=False)
        text = f'{self.model_name}: loaded {len(weights)} tensors of {checkpoint}'
        for meaning, names in (('left out', left_out), ('not in the file, trained from scratch', sorted(new))):
            if names:
                text += f'; {meaning}: {", ".join(names)}'
        print_log(text, logger='current', level=logging.INFO)

    @cached_property
    def _layers(self) -> dict[str, int]:
        return group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter, for optimisers whose learning rate falls from the head to the stem.

        mmpretrain's `LearningRateDecayOptimWrapperConstructor` asks for it, as does our `LayerDecayConstructor`.

        Args:
            param_name: Its name in the whole detector, segmenter or classifier.
            prefix: What the names of this backbone's parameters begin with there, such as 'backbone.'.

        Returns:
            Its layer, from 0 for the stem on, and the number of layers. The last layer is that of whatever is not in
            the model: heads, necks, output norms.
        """
        last = max(self._layers.values()) + 1
        own = param_name.startswith(f'{prefix}model.')
        return self._layers.get(param_name.removeprefix(f'{prefix}model.'), last) if own else last, last + 1

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take upstream's names, too: the authors' detectors load as checkpoints of the whole detector."""
        own = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
        renamed = dense_state_dict({name.removeprefix(prefix): x for name, x in own.items()}, self) if own else {}
        state_dict.update({f'{prefix}{name}': x for name, x in renamed.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _create(model_name: str, args: dict[str, Any]) -> nn.Module:
    check_model(model_name)
    allowed = inspect.signature(type(sketch(model_name)).__init__).parameters
    unknown = sorted(args.keys() - allowed.keys())
    if unknown:
        choices = ', '.join(name for name in allowed if name not in ('self', 'device', 'dtype'))
        raise ValueError(f'{model_name} has no argument {", ".join(unknown)}; it has {choices}')
    if 'dynamic_img_size' in allowed:
        args = {'dynamic_img_size': True, **args}
    return timm.create_model(model_name, **args)


def _checked_init(init_cfg: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if init_cfg is None:
        return None
    extra = init_cfg.keys() - {'type', 'checkpoint', 'prefix'}
    if init_cfg.get('type') != 'Pretrained' or not isinstance(init_cfg.get('checkpoint'), str) or extra:
        raise ValueError(f"init_cfg is {init_cfg!r}; allowed is dict(type='Pretrained', checkpoint='...')")
    if init_cfg.get('prefix') not in (None, 'backbone.', 'backbone'):
        raise ValueError(f"prefix of init_cfg is {init_cfg['prefix']!r}; 'backbone.' is found without it")
    return dict(init_cfg)
