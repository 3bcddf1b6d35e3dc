"""Parameter groups by layer for mmengine's optimisers, for every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from .backbone import Backbone
from .registry import OPTIM_WRAPPER_CONSTRUCTORS

# besides all tensors of one axis: norms, biases, scales
_NO_DECAY = ('A_log', 'D', 'dt_proj_bias', 'pos_embed', 'cls_token')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor:
    """Optimisers whose learning rate falls from the head to the stem, and which decay only what should be decayed.

    In a config: `optim_wrapper = dict(constructor='visionssm.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.9), optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))`.

    The last block learns at `decay_rate` times the rate, the one before at its square and so on to the stem; layers
    are those of the model's `group_matcher`. Whatever is not in the model learns at the full rate. Nothing of one axis
    (norms, biases, scales) is decayed, nor `A_log`, `D`, step biases, position embeddings, the class token and what
    the model's `no_weight_decay` names.

    Args:
        optim_wrapper_cfg: Configuration of the wrapper, with `optimizer`.
        paramwise_cfg: `decay_rate` in (0, 1], 1 (all layers alike) by default; `custom_keys` as mmengine's own
            constructor has them: of those found in a parameter's name, the longest applies. Its `lr_mult`
            multiplies the rate of the layer, its `decay_mult` the full weight decay, even where there was none; what
            else it holds goes to the optimiser.

    Raises:
        ValueError: If `paramwise_cfg` has an unknown entry, or one of the wrong form or out of range.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        paramwise_cfg = paramwise_cfg or {}
        unknown = sorted(paramwise_cfg.keys() - {'decay_rate', 'custom_keys'})
        if unknown:
            raise ValueError(f'paramwise_cfg has {", ".join(unknown)}; allowed are decay_rate and custom_keys')
        self.decay_rate = paramwise_cfg.get('decay_rate', 1.0)
        if not 0 < self.decay_rate <= 1:
            raise ValueError(f'decay_rate is {self.decay_rate!r}; allowed is more than 0, up to 1')
        keys = paramwise_cfg.get('custom_keys', {})
        if not (isinstance(keys, Mapping) and all(isinstance(settings, Mapping) for settings in keys.values())):
            raise ValueError(f"custom_keys is {keys!r}; give {{'part of a name': dict(lr_mult=..., decay_mult=...)}}")
        self.custom_keys = {key: keys[key] for key in sorted(sorted(keys), key=len, reverse=True)}
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.optim_wrapper_cfg.pop('optimizer'))

    def __call__(self, model: nn.Module) -> Any:
        """The optimiser wrapper for `model`, which may be wrapped in distributed data parallelism."""
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'params': self.groups(getattr(model, 'module', model))})
        return OPTIM_WRAPPERS.build({'type': 'OptimWrapper', **self.optim_wrapper_cfg, 'optimizer': optimizer})

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters that are trained, in groups of one learning rate and weight decay.

        Raises:
            ValueError: If there is no `Backbone` in `model`.
        """
        scales, exempt = {}, set()
        backbones = {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}
        if not backbones:
            raise ValueError(f"{type(model).__name__} has no visionssm.Backbone; use mmengine's own constructor")
        for path, backbone in backbones.items():
            start = f'{path}.' if path else ''
            for name, _ in backbone.named_parameters():
                layer, layers = backbone.get_layer_depth(start + name, start)
                scales[start + name] = self.decay_rate ** (layers - 1 - layer)
            named = getattr(backbone.model, 'no_weight_decay', set)()  # timm's own need not have it
            exempt |= {f'{start}model.{name}' for name in named}
        lr, weight_decay = self.optimizer_cfg['lr'], self.optimizer_cfg.get('weight_decay', 0.0)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            custom = next((key for key in self.custom_keys if key in name), None)
            settings = dict(self.custom_keys.get(custom, {}))
            bare = parameter.ndim <= 1 or name in exempt or name.rpartition('.')[2] in _NO_DECAY
            scale, decay = scales.get(name, 1.0) * settings.pop('lr_mult', 1.0), settings.pop('decay_mult', not bare)
            group = groups.setdefault(
                (scale, decay, custom if settings else None),
                {'params': [], 'names': [], 'lr': lr * scale, 'weight_decay': weight_decay * decay, **settings},
            )
            group['params'].append(parameter)
            group['names'].append(name)
        return list(groups.values())
