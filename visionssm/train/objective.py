"""What is minimised: the labels' loss, and what a teacher or the run's own average adds to it."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .data import ImageConfig
from .loop import Forward, Progress
from .recipe import Recipe


class Teacher(nn.Module):
    """A trained timm model that takes the student's images, and resizes and normalises them for itself.

    Args:
        name: Of timm, with pretrained weights, or `local-dir:FOLDER`.
        image: Images as the student takes them.
        num_classes: Classes of the student.

    Raises:
        ValueError: If there is no such model, it has no weights, or it has other classes or channels.
    """

    def __init__(self, name: str, image: ImageConfig, num_classes: int) -> None:
        super().__init__()
        try:
            self.model = timm.create_model(name, pretrained=True).eval().requires_grad_(False)
        except (RuntimeError, OSError) as error:  # what timm raises
            raise ValueError(f'teacher {name!r} cannot be loaded: {error}') from error
        config = resolve_data_config(model=self.model)
        if self.model.num_classes != num_classes:
            raise ValueError(f'teacher {name} has {self.model.num_classes} classes, and the student has {num_classes}')
        if config['input_size'][0] != image.input_size[0]:
            raise ValueError(
                f'teacher {name} takes {config["input_size"][0]} channels, and the student {image.input_size[0]}'
            )
        self.size = tuple(config['input_size'][1:])

        def channels(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)

        std = channels(config['std'])
        self.register_buffer('scale', channels(image.std) / std)
        self.register_buffer('shift', (channels(image.mean) - channels(config['mean'])) / std)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits for the student's images."""
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode='bicubic', align_corners=False)
        return self.model(images * self.scale + self.shift).float()


class Objective:
    """Mean loss of a batch.

    Args:
        recipe: The losses and their weights.
        device_type: Of the batches.
        dtype: To compute in, under autocast; None: as the tensors are.
        progress: Of the run, for what begins later.
        teacher: To distil from.
        ema: Average of the weights, for MESA.

    Sources: hard distillation arXiv:2012.12877, soft arXiv:1503.02531; MESA arXiv:2205.14083, as A2Mamba
    (arXiv:2507.16624) uses it: the average predicts in evaluation mode.
    """

    def __init__(
        self,
        recipe: Recipe,
        device_type: str,
        dtype: torch.dtype | None,
        progress: Progress,
        teacher: Teacher | None = None,
        ema: ModelEmaV3 | None = None,
    ) -> None:
        self.recipe, self.device_type, self.dtype = recipe, device_type, dtype
        self.progress, self.teacher, self.ema = progress, teacher, ema
        self.criterion: nn.Module = LabelSmoothingCrossEntropy(recipe.smoothing)
        if recipe.mixup or recipe.cutmix:
            self.criterion = SoftTargetCrossEntropy()

    def __call__(self, forward: Forward, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of `forward` on (images, labels)."""
        recipe = self.recipe
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            output = forward(images)
        # with two classifiers, the second learns from the teacher
        logits, taught = (x.float() for x in (output if isinstance(output, tuple) else (output, output)))
        loss = self.criterion(logits, labels)
        if self.teacher is not None:
            with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
                target = self.teacher(images)
            loss = recipe.base_weight * loss + recipe.distillation_weight * self._distil(taught, target)
        if recipe.mesa and self.progress.epoch >= recipe.mesa_start:
            with torch.no_grad(), torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
                average = self.ema.module(images).float().softmax(1)
            loss = loss + recipe.mesa * SoftTargetCrossEntropy()(logits, average)
        return loss

    def _distil(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.recipe.distillation == 'hard':
            return F.cross_entropy(logits, target.argmax(1))
        temperature = self.recipe.temperature
        student, teacher = ((x / temperature).log_softmax(1) for x in (logits, target))
        return F.kl_div(student, teacher, reduction='batchmean', log_target=True) * temperature**2
