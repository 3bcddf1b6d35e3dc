"""Channel networks on maps: MLPs with and without a depthwise convolution, and the gate of squeeze-and-excitation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import FastLinears, Linear, activated_at_once, is_untouched, linear_activated_at_once

# between two layers, per thread: these stay in the cache, and malloc asks the system for no memory to hold them
_MOST_ELEMENTS = 1 << 21


class ImagewiseMlp(FastLinears):
    """A network of channels, `mix`, to which a large batch comes in parts at inference on a CPU.

    Args:
        hidden: Channels between its layers.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (B, ..., C)."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            at_once = self._images_at_once(x)
            if at_once > 0:
                return torch.cat([self.mix(images) for images in x.split(at_once)])
        return self.mix(x)

    @torch.jit.ignore
    def _images_at_once(self, x: Tensor) -> int:
        """Images per part; 0: all at once."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
            return 0
        if type(x) is not Tensor or x.device.type != 'cpu' or len(x) < 2:
            return 0
        between = x[0].numel() // x.shape[-1] * self.hidden  # per image
        images = max(_MOST_ELEMENTS * torch.get_num_threads() // max(between, 1), 1)
        return images if images < len(x) and is_untouched(self, _KINDS) else 0


class DepthwiseMlp(ImagewiseMlp):
    """Linear, depthwise 3x3 convolution, GELU, linear, on (B, H, W, C).

    Args:
        dim: Channels in and out.
        hidden: Channels between.
        residual: Add the convolution's input to its output.
    """

    def __init__(self, dim: int, hidden: int, residual: bool = False, device=None, dtype=None) -> None:
        super().__init__(hidden)
        dd = {'device': device, 'dtype': dtype}
        self.residual = residual
        self.fc1 = Linear(dim, hidden, **dd)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim, **dd)

    def mix(self, x: Tensor) -> Tensor:
        """Apply to a map."""
        return self.fc2(self.convolve(self.fc1(x)))

    def convolve(self, x: Tensor) -> Tensor:
        """What is between the linear layers."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = activated_at_once(x, self.conv, self.act, self.residual)
            if y is not None:
                return y
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.residual:
            y = x + y
        return self.act(y)


class Mlp(ImagewiseMlp):
    """Linear, GELU, linear, on (..., C): timm's, with our linear layers.

    Args:
        dim: Channels in and out.
        hidden: Channels between.
    """

    def __init__(self, dim: int, hidden: int, device=None, dtype=None) -> None:
        super().__init__(hidden)
        self.fc1 = Linear(dim, hidden, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim, device=device, dtype=dtype)

    def mix(self, x: Tensor) -> Tensor:
        """Apply to every token."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = linear_activated_at_once(x, self.fc1, self.act)
            if y is not None:
                return self.fc2(y)
        return self.fc2(self.act(self.fc1(x)))


_KINDS = frozenset({DepthwiseMlp, Mlp, Linear, nn.Conv2d, nn.GELU})


class NormedGate(nn.Module):
    """Tokens (B, L, C), weighed by channel as the mean of the normed tokens says.

    Args:
        dim: Channels; an eighth as many between.

    Source: arXiv:2403.09338 (LocalMamba, section 4.3, without its spatial half); hunto/LocalMamba@75e5d1f, which
        EfficientVMamba took over.
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.fc1 = nn.Linear(dim, dim // 8, **dd)
        self.fc2 = nn.Linear(dim // 8, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels."""
        return x * self.fc2(F.gelu(self.fc1(self.norm(x).mean(1, keepdim=True)))).sigmoid()


class ChannelGate(nn.Module):
    """Squeeze-and-excitation weights (B, 1, 1, C) of a map (B, H, W, C); the caller multiplies.

    timm's `SqueezeExcite` multiplies its own input; GroupMamba weighs another map.

    Args:
        dim: Channels.
        hidden: Channels between.
        bias: Whether the two linear layers have biases.

    Source: arXiv:1709.01507, section 3.
    """

    def __init__(self, dim: int, hidden: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.fc1 = nn.Linear(dim, hidden, bias=bias, **dd)
        self.fc2 = nn.Linear(hidden, dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels."""
        return self.fc2(F.relu(self.fc1(x.mean((1, 2), keepdim=True)))).sigmoid()
