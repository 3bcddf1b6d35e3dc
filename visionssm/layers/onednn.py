"""The operators as layers call them: `torch.fx` and timm's feature extraction record each call as one node."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from visionssm.ops import linear, na_av, na_bias, na_qk, scan_tokens

__all__ = ['Linear', 'linear', 'na_av', 'na_bias', 'na_qk', 'scan_tokens']

for _name in ('linear', 'na_av', 'na_bias', 'na_qk', 'scan_tokens'):
    register_notrace_function(globals()[_name])
    torch.fx.wrap(_name)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) to (..., D)."""
        return linear(input, self.weight, self.bias)
