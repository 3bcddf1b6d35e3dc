"""Convolutions with BatchNorm on channels-last maps, which become one layer for inference."""

import torch
from torch import Tensor, nn

from .embed import spread
from .functional import Linear


class ChannelScale(nn.Conv2d):
    """Depthwise 1x1 convolution of (B, H, W, C): torch would run it channel by channel on small maps.

    Args:
        dim: Channels.
        bias: Whether it has a bias.
    """

    def __init__(self, dim: int, bias: bool = False, device=None, dtype=None) -> None:
        super().__init__(dim, dim, 1, groups=dim, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Scale, and add the bias."""
        y, bias = input * self.weight.flatten(), self.bias
        return y if bias is None else y + bias


def scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by and adds in evaluation."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class ConvNorm(nn.Module):
    """Convolution and BatchNorm on maps (B, H, W, C); one of 1x1 is a linear layer, or a factor per channel.

    `timm.utils.reparameterize_model` makes it one layer, by `reparameterize`.

    Args:
        in_chans: Channels in.
        out_chans: Channels out.
        kernel_size: Side of the kernel, odd.
        stride: Of the convolution.
        groups: Of the convolution.
        bias: Whether the convolution has a bias.
        norm_weight: What the norm's weight starts with; 0 for the last layer of a residual branch.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm_weight: float = 1.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        depthwise = groups == in_chans == out_chans > 1
        self.pointwise = kernel_size == stride == 1 and (groups == 1 or depthwise)
        if self.pointwise:
            conv = ChannelScale(in_chans, bias, **dd) if depthwise else Linear(in_chans, out_chans, bias=bias, **dd)
        else:
            padding = kernel_size // 2
            conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, groups=groups, bias=bias, **dd)
        self.conv = conv
        self.bn = nn.BatchNorm2d(out_chans, **dd)
        if norm_weight != 1.0:
            nn.init.constant_(self.bn.weight, norm_weight)

    @torch.jit.ignore
    @torch.no_grad()
    def reparameterize(self) -> None:
        """Put the norm, as it is in evaluation, into weight and bias of the convolution."""
        if isinstance(self.bn, nn.Identity):
            return
        scale, shift = scale_and_shift(self.bn)
        if self.conv.bias is not None:
            shift = shift + self.conv.bias * scale
        self.conv.weight.mul_(scale.reshape(-1, *[1] * (self.conv.weight.ndim - 1)))
        self.conv.bias = nn.Parameter(shift, requires_grad=self.conv.weight.requires_grad)
        self.bn = nn.Identity()

    @torch.jit.ignore
    def keep_size(self, dilation: int) -> None:
        """Do not halve the map; read pixels that are `dilation` apart."""
        self.conv.stride = (1, 1)
        spread(self.conv, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and norm a map."""
        if self.pointwise:
            return self.bn(self.conv(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.bn(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
