"""Stochastic layer-wise shuffle: a regularisation for models of one resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionssm.models.isotropic import Isotropic


def shuffle_layers(model: nn.Module, rate: float) -> None:
    """Let every block see its tokens in random order now and then, while training.

    Block i of n does so with probability `rate` * i / (n - 1): one draw and one permutation for the whole batch, of all
    tokens, class token included. The stream is put back in order behind the block.

    Args:
        model: One with blocks at one resolution.
        rate: Probability in the last block, in [0, 1].

    Raises:
        ValueError: If it is not.

    Source: arXiv:2408.17081.
    """
    if not isinstance(model, Isotropic):
        raise ValueError(
            f'shuffle_layers needs a model of one resolution, such as Vim or PlainMamba; {type(model).__name__} is not'
        )
    last = max(1, len(model.blocks) - 1)
    for i, block in enumerate(model.blocks):
        shuffle = _Shuffle(rate * i / last)
        block.register_forward_pre_hook(shuffle.mix)
        block.register_forward_hook(shuffle.restore)


class _Shuffle:
    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.order: Tensor | None = None

    @torch.compiler.disable  # the draw is Python's, and has to be a new one in every step
    def mix(self, block: nn.Module, inputs: tuple) -> tuple | None:
        self.order = None
        if not block.training or float(torch.rand(())) >= self.probability:
            return None
        x = inputs[0]
        self.order = torch.randperm(x[0, ..., 0].numel()).to(x.device)
        return _take(x, self.order), *inputs[1:]

    @torch.compiler.disable
    def restore(self, block: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        return None if self.order is None else _take(output, self.order.argsort())


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of (B, ..., C) in another order, in the same places."""
    return x.flatten(1, -2)[:, order].view_as(x)
