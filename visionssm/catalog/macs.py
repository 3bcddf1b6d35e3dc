"""Multiply-adds of a forward pass, counted on the meta device by torch's own counter."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Multiply-adds for one image, as the papers count them.

    Linear layers, convolutions and attention by their products; scans and neighbourhood attention as `visionssm.ops`
    tells torch. Norms, activations and sums are not counted.

    Args:
        model: On the meta device, in eval mode.
        input_size: Channels, height and width.

    Returns:
        Their number.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *input_size, device='meta'))
    return counter.get_total_flops() / 2
