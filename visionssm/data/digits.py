"""Scikit-learn's handwritten digits (8 x 8 pixels), with a fixed split, and the size at which a model takes them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from visionssm.catalog.models import sketch, takes_argument

HELD_OUT = 0.2
CLASSES = tuple(str(digit) for digit in range(10))
_SPLIT_SEED = 0  # the split is the same whatever the training seed
_LEAST_GRID = 6  # tokens along a side of the first map


class Digits(NamedTuple):
    """Images in [0, 1], (n, 1, 8, 8), and labels, for training and held out."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(limit: int | None = None) -> Digits:
    """The 1,797 digits of UCI's Optical Recognition of Handwritten Digits test set, a stratified fifth held out.

    Args:
        limit: Split only the first `limit`; None: all.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    if limit is not None:
        images, labels = images[:limit], labels[:limit]
    train, test = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=_SPLIT_SEED
    )
    pixels = torch.tensor(images, dtype=torch.float32).div_(16).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels, dtype=torch.int64)
    return Digits(pixels[train], targets[train], pixels[test], targets[test])


def fitting_size(name: str, model: nn.Module) -> int:
    """Side to which digits are enlarged for a registered model of ours or timm's, of which `model` is a sketch."""
    size = image_size([level['reduction'] for level in model.feature_info])
    try:
        small = sketch(name, **({'img_size': size} if takes_argument(model, 'img_size') else {})).eval()
        with torch.no_grad():
            small(torch.empty(1, 3, size, size, device='meta'))
    except (AssertionError, RuntimeError, ValueError):  # windows, pooling and fixed grids may need larger maps
        return model.pretrained_cfg['input_size'][-1]
    return size


def image_size(reductions: list[int]) -> int:
    """Side of the images for maps at 1/reduction: the first has six tokens a side or more, the last more than one."""
    step = math.lcm(8, reductions[0])
    least = max(_LEAST_GRID * reductions[0], reductions[-1] + 1)
    return -(-least // step) * step
