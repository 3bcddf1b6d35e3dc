"""Feature pyramids from maps of one resolution."""

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn


def _double(in_chans: int, out_chans: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_chans, out_chans, 2, stride=2)


class ResamplePyramid(nn.Module):
    """Four maps of one stride s to strides s / 4, s / 2, s and 2 s (rounded up), with as many channels.

    Args:
        in_channels: Channels of every map.

    Source: hustvl/Vim@dd0358a, segmentation. Its norm is SyncBN: convert with `nn.SyncBatchNorm` to train on many GPUs.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.fpn1 = nn.Sequential(
            _double(in_channels, in_channels),
            nn.BatchNorm2d(in_channels),
            nn.GELU(),
            _double(in_channels, in_channels),
        )
        self.fpn2 = nn.Sequential(_double(in_channels, in_channels))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Resample (B, C, H, W) each.

        Raises:
            ValueError: If there are not four.
        """
        if len(maps) != 4:
            raise ValueError(f'ResamplePyramid takes 4 maps, not {len(maps)}')
        return self.fpn1(maps[0]), self.fpn2(maps[1]), self.fpn3(maps[2]), self.fpn4(maps[3])


class SimplePyramid(nn.Module):
    """One map of stride s to maps of strides s / 4, s / 2, s, 2 s and 4 s, each through convolutions of its own.

    Args:
        in_channels: Channels of the map, a multiple of 4.
        out_channels: Channels of every map of the pyramid.

    Source: arXiv:2203.16527, section 3; hustvl/Vim@dd0358a, detection.
    """

    def __init__(self, in_channels: int, out_channels: int = 256) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        up = nn.Sequential(_double(in_channels, half), LayerNorm2d(half), nn.GELU(), _double(half, quarter))
        resamplers = (up, _double(in_channels, half), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True))
        self.levels = nn.ModuleList(
            nn.Sequential(
                resample,
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for resample, width in zip(resamplers, (quarter, half, in_channels, in_channels), strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid of the one (B, C, H, W) in `maps`.

        Raises:
            ValueError: If there is not exactly one.
        """
        if len(maps) != 1:
            raise ValueError(f'SimplePyramid takes 1 map, not {len(maps)}')
        out = [level(maps[0]) for level in self.levels]
        return *out, out[-1][..., ::2, ::2]


class FinerLevels(nn.Module):
    """Maps of a pyramid, and finer ones before them: each the first one doubled, and convolved.

    Args:
        in_channels: Channels of every map.
        levels: How many to add; their strides are a half, a quarter and so on of the first one's.

    Source: arXiv:2411.15941, detection. Behind an FPN they give the parameters that are reported there, 38.0 M (two
    levels, Mask R-CNN) and 27.1 M (one, RetinaNet), the constant filters of the backbone included.
    """

    def __init__(self, in_channels: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(_double(in_channels, in_channels), nn.Conv2d(in_channels, in_channels, 3, padding=1))
            for _ in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Add maps to those of (B, C, H, W), the finest first."""
        for level in self.levels:
            maps = (level(maps[0]), *maps)
        return tuple(maps)
