"""What VSSD and Spatial-Mamba share: stem, downsampling, and a block with convolutions that encode positions."""

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath
from torch import Tensor, nn

from .convnorm import ConvNorm
from .embed import Stem, channels_last, check_image_size, spread
from .functional import FastLinears, Linear, activated_at_once
from .mlp import Mlp


class DepthwiseConv(nn.Conv2d):
    """Depthwise convolution of (B, H, W, C), padded to keep the size.

    Args:
        dim: Channels.
        kernel_size: Side of the kernel, odd.
    """

    def __init__(self, dim: int, kernel_size: int, device=None, dtype=None) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
            y = activated_at_once(x, self, 'none', kind=DepthwiseConv)
            if y is not None:
                return y
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)


class BottleneckStem(Stem):
    """Five convolutions with BatchNorm, two of them residual: images to (B, H / 4, W / 4, D), rounded up.

    Args:
        in_chans: Image channels.
        dim: Token channels.

    Source: arXiv:2405.16605, the stem of MLLA.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.conv1 = ConvNormAct(in_chans, dim // 2, 3, stride=2, **dd)
        self.conv2 = ConvNormAct(dim // 2, dim // 2, 3, **dd)
        self.conv3 = ConvNormAct(dim // 2, dim // 2, 3, apply_act=False, **dd)
        self.conv4 = ConvNormAct(dim // 2, 4 * dim, 3, stride=2, **dd)
        self.conv5 = ConvNorm(4 * dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, C, H, W)."""
        check_image_size(x, self.least)
        x = self.conv1(channels_last(x))
        x = self.conv3(self.conv2(x)) + x
        return self.conv5(self.conv4(x).permute(0, 2, 3, 1))


class BottleneckDownsample(FastLinears):
    """Widening, depthwise 3x3 convolution of stride 2, narrowing, BatchNorm: (B, H, W, C) to (B, H / 2, W / 2, D).

    Args:
        dim: Channels in.
        out_dim: Channels out.
        ratio: Channels between over those out.

    Source: arXiv:2405.16605, the downsampling of MLLA.
    """

    def __init__(self, dim: int, out_dim: int, ratio: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        hidden = ratio * out_dim
        self.fc1 = Linear(dim, hidden, **dd)
        self.conv = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden, **dd)
        self.fc2 = ConvNorm(hidden, out_dim, bias=True, **dd)

    @torch.jit.ignore
    def keep_size(self, dilation: int) -> None:
        """Do not halve the map; read pixels that are `dilation` apart."""
        self.conv.stride = (1, 1)
        spread(self.conv, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        x = F.relu(self.fc1(x))
        return self.fc2(F.relu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))


class PositionedBlock(nn.Module):
    """Pre-norm residual block with a positional convolution before the mixer and before the MLP.

    Args:
        dim: Channels.
        mixer: Mixes tokens.
        mlp_ratio: Hidden / dim of the MLP.
        drop_path: Rate of dropping either branch, per sample.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.cpe1 = DepthwiseConv(dim, 3, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.cpe2 = DepthwiseConv(dim, 3, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C)."""
        x = x + self.cpe1(x)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))
