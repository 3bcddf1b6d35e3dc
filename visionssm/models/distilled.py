"""Pyramids with a second classifier that learns from a teacher, as DeiT's."""

from collections.abc import Callable

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from .pyramid import Pyramid


class DistilledHead(nn.Module):
    """Pooling, dropout, and the classifiers `fc` and, unless there is one alone, `fc_dist`; a subclass may `refine`.

    Args:
        dim: Channels of the map.
        num_classes: Classes; 0: no classifiers.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        drop_rate: Dropout before the classifiers.
        distilled: Whether there is a second classifier.
        classifier: Builds one from the channels that it sees and the number of classes.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        distilled: bool = True,
        classifier: Callable[..., nn.Module] = nn.Linear,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool), input_fmt='NHWC')
        self.num_features = dim * self.global_pool.feat_mult()
        self.drop = nn.Dropout(drop_rate)
        for name, there in (('fc', True), ('fc_dist', distilled)):
            made = (
                classifier(self.num_features, num_classes, device=device, dtype=dtype)
                if there and num_classes
                else None
            )
            setattr(self, name, nn.Identity() if made is None else made)

    def refine(self, x: Tensor) -> Tensor:
        """What is done to the pooled token, or to the map without pooling."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """What the classifiers see of a map (B, H, W, C)."""
        return self.drop(self.refine(self.global_pool(x)))


class DistilledPyramid(Pyramid):
    """A pyramid with a `DistilledHead`.

    Attributes:
        distilled: Whether the head has a second classifier.
        distilled_training: Whether `train()` gives the logits of both.
    """

    distilled = True
    distilled_training = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.distilled, self.distilled_training = self.distilled, False  # of the instance, for TorchScript

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, refine and classify a map; with `pre_logits` do not classify.

        Returns:
            The average of both classifiers; in distilled training (classifier, distillation classifier).
        """
        x = self.head(x)
        if pre_logits:
            return x
        if not self.distilled:
            return self.head.fc(x)
        x, dist = self.head.fc(x), self.head.fc_dist(x)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return x, dist
        return (x + dist) / 2

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Let `train()` return both classifiers' logits, the second of which is for a teacher's labels."""
        self.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier, or both."""
        return (self.head.fc, self.head.fc_dist) if self.distilled else self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Set new classifiers for `num_classes` (0: none), and pooling unless None, on the same device and dtype."""
        old = self.head
        super().reset_classifier(num_classes, global_pool)
        self._init_head()
        pooled = old.global_pool.pool_type and self.head.global_pool.pool_type
        if pooled and old.num_features == self.head.num_features:
            for name, module in old.named_children():
                if not name.startswith(('fc', 'drop', 'global_pool')):
                    setattr(self.head, name, module)

    def _init_head(self) -> None:
        """Fill a new head."""
