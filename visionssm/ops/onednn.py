"""Linear layers whose product oneDNN computes on x86 CPUs, where torch itself asks MKL.

On CPUs that are not Intel's, MKL takes its AVX2 path: on a Zen 5 core oneDNN is 2 to 3 times as fast at the sizes of
these models, and on a Zen 3 core, which has no AVX-512, 0.9 to 1.3 times. torch reaches oneDNN's product in eager mode
by one operator alone, which inductor uses.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

ON_X86 = platform.machine() in ('x86_64', 'AMD64')
IS_FASTER = ON_X86 and torch.backends.cpu.get_cpu_capability() == 'AVX512'  # than torch's own


def refuse(problem) -> str:
    """Why oneDNN can't serve `problem`; '' if it can."""
    if problem.dtype != torch.float32:
        return f'it computes in fp32, not {problem.dtype}'
    if not ON_X86:
        return 'torch has it on x86 alone'
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')):
        return 'this torch was built without it'
    return ''


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')
