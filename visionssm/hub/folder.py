"""A folder that holds a model in timm's layout, as timm and transformers read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from visionssm.files import read_object


def write_model(
    model: nn.Module, folder: Path, model_config: Mapping[str, Any] | None, model_args: Mapping[str, Any]
) -> None:
    """Write `config.json` and `model.safetensors` by timm's `save_for_hf`.

    timm 1.0.29 and later note the number of classes twice, and transformers passes both on ("multiple values for
    keyword argument 'num_classes'"): it stays where every version of both reads it.

    Args:
        model: A model of timm's registry.
        folder: That there is.
        model_config: Further entries of `config.json`, such as `label_names`.
        model_args: Arguments that the model is made with again, as JSON has them.
    """
    save_for_hf(
        model,
        str(folder),
        model_config=dict(model_config) if model_config else None,
        model_args=dict(model_args),
        safe_serialization=True,
    )
    file = folder / 'config.json'
    config = read_object(file)
    config.get('model_args', {}).pop('num_classes', None)
    file.write_text(json.dumps(config, indent=2), encoding='utf-8')
