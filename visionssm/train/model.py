"""The model of a run: made, given its first weights, frozen, and written as a folder that timm loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import nn

from visionssm.catalog.models import check_model, sketch, takes_argument
from visionssm.data.digits import fitting_size
from visionssm.files import added_files, read_object
from visionssm.hub.folder import write_model
from visionssm.models.bounds import check_size
from visionssm.weights.locate import locate

from .data import ImageConfig
from .recipe import Recipe

_GREY = (0.5,)


def model_arguments(recipe: Recipe, channels: int, num_classes: int | None) -> tuple[dict[str, Any], int]:
    """What the model of a recipe is made with, and the side of its images.

    Raises:
        ValueError: If the model is unknown, or its arguments do not fit it.
    """
    kwargs: dict[str, Any] = {**recipe.model_args, 'in_chans': channels}
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    if recipe.drop_path:
        kwargs['drop_path_rate'] = recipe.drop_path
    if not timm.is_model(recipe.model):
        check_model(recipe.model)  # says what is close
    try:
        check_size(recipe.model, lambda: timm.create_model(recipe.model, **kwargs), kwargs, from_file=True)
        plain = sketch(recipe.model, **kwargs)
    except (TypeError, RuntimeError) as error:  # an argument or a tag that does not exist
        raise ValueError(f'{recipe.model} cannot be made with {recipe.model_args}: {error}') from error
    size = recipe.img_size
    if size is None:
        size = fitting_size(recipe.model, plain) if recipe.data == 'digits' else plain.pretrained_cfg['input_size'][-1]
    if takes_argument(plain, 'img_size'):
        kwargs['img_size'] = size
    return kwargs, size


def create_model(recipe: Recipe, channels: int, num_classes: int | None) -> tuple[nn.Module, ImageConfig]:
    """The model of a recipe with its first weights, and how it takes images.

    Args:
        recipe: Model, its arguments, image size, first weights.
        channels: Of the images.
        num_classes: Of the data; None: those of the model.

    Raises:
        ValueError: If the model is unknown, or its arguments or weights do not fit it.
        FileNotFoundError: If there are no such weights.
    """
    kwargs, size = model_arguments(recipe, channels, num_classes)
    model = timm.create_model(recipe.model, **kwargs, **_initial(recipe.initial))
    config = resolve_data_config({'input_size': (channels, size, size)}, model=model)
    image = ImageConfig(
        (channels, size, size),
        _GREY if channels == 1 else config['mean'],
        _GREY if channels == 1 else config['std'],
        config['interpolation'],
        recipe.crop_pct or (1.0 if recipe.data == 'digits' else config['crop_pct']),
        config['crop_mode'],
    )
    if recipe.initial is None:
        model.pretrained_cfg.update(license=None, origin_url=None)
    model.pretrained_cfg.update(image._asdict(), file=None, source='', url='', hf_hub_id=None, hf_hub_filename=None)
    return model, image


def _initial(initial: str | None) -> dict[str, Any]:
    if initial is None:
        return {}
    if initial == 'pretrained':
        return {'pretrained': True}
    path = Path(initial)
    if not path.exists():
        raise FileNotFoundError(f'no weights at {initial}')
    overlay: dict[str, Any] = {'file': initial}
    if path.is_dir():
        config = read_object(path / 'config.json')
        overlay = {'file': str(locate(path))}
        try:
            overlay |= {'num_classes': config['num_classes'], 'input_size': config['pretrained_cfg']['input_size']}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'{path / "config.json"} is not as timm writes it: {type(error).__name__} {error}'
            ) from None
    return {'pretrained': True, 'pretrained_cfg_overlay': overlay}


def freeze_backbone(model: nn.Module) -> Callable[[nn.Module], None]:
    """Freeze everything but the classifiers.

    Returns:
        What puts the model into training mode: only its classifiers, so the statistics of norms stay as well.
    """
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    model.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)

    def to_train(model: nn.Module) -> None:
        model.eval()
        for head in heads:
            head.train()

    return to_train


def save_model(
    model: nn.Module, folder: Path, label_names: Sequence[str] | None, model_args: dict[str, Any], note: str
) -> None:
    """Write a model in timm's Hub layout, `config.json` and `model.safetensors`; `local-dir:FOLDER` loads it.

    Args:
        model: A trained model, whose `pretrained_cfg` says how it takes images.
        folder: Where to; each file appears whole.
        label_names: Of the classes.
        model_args: Arguments that the model was made with; its scan is added.
        note: Where the weights are from.
    """
    model_args = {'in_chans': model.pretrained_cfg['input_size'][0], **model_args}
    if hasattr(model, 'scan'):
        model_args['scan'] = model.scan
    if takes_argument(model, 'img_size'):
        model_args['img_size'] = model.pretrained_cfg['input_size'][-1]
    model.pretrained_cfg.update(notes=(note,), tag='')  # what is known of published weights no longer holds
    with added_files(folder) as partial:
        write_model(model, partial, {'label_names': list(label_names)} if label_names else None, model_args)
