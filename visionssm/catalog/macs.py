"""Multiply-adds of a forward pass, counted on the meta device by torch's own counter."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Multiply-adds for one image, as the papers count them.

    Linear layers, convolutions and attention by their products, neighbourhood attention by the K * K keys of each
    query; the scan as 9 B L K D N, and B L K D for each of skip and gate (arXiv:2401.10166, appendix, after
    state-spaces/mamba issue 110). Norms, activations and sums count nothing.

    Args:
        model: On the meta device, in eval mode.
        input_size: Channels, height and width.

    Returns:
        Their number.
    """
    ops = torch.ops.visionssm
    mapping = {ops.selective_scan: _scan, ops.na_qk: _na_qk, ops.na_av: _na_av}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        model(torch.empty(1, *input_size, device='meta'))
    return counter.get_total_flops() / 2


# torch's counter has two operations per multiply-add, so these have, too; it gives them shapes for tensors


def _scan(u, delta, A, B, C, D, z, delta_bias, order, *args, out_shape=None, **kwargs) -> int:
    batch, length, directions, states = B
    steps = length if order is None else order[1]
    return 2 * batch * steps * directions * u[-1] * (9 * states + (D is not None) + (z is not None))


def _na_qk(q, k, window, dilation, *args, **kwargs) -> int:
    batch, heads, height, width, channels = q
    return 2 * batch * heads * height * width * channels * window**2


def _na_av(attn, v, *args, **kwargs) -> int:
    return _na_qk(v, v, *args, **kwargs)
