"""What VMamba and the pyramids grown from it share: stems, downsampling, stages."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from visionssm.layers import ConvDownsample, OverlapStem, PatchStem

from .pyramid import Stage


class PatchMerge(PatchMerging):
    """timm's `PatchMerging`, (B, H, W, C) to (B, H / 2, W / 2, D) rounded up, with sizes that compilers can simplify.

    timm's own nest a remainder and a quotient per stage: compiling with dynamic shapes takes twice as long.
    """

    dilation: torch.jit.Final[int] = 0

    @torch.jit.ignore
    def keep_size(self, dilation: int) -> None:
        """Join each pixel with those `dilation` to the right and below, and do not halve the map."""
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        batch, height, width, channels = x.shape
        if self.dilation > 0:
            y = F.pad(x, [0, 0, 0, self.dilation, 0, self.dilation])
            below, right = y[:, self.dilation :, :width], y[:, :height, self.dilation :]
            x = torch.cat([x, below, right, y[:, self.dilation :, self.dilation :]], -1)
            return self.reduction(self.norm(x))
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, [0, 0, 0, 2 * columns - width, 0, 2 * rows - height])
        x = x.reshape(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


STEMS = {'patch': PatchStem, 'overlap': OverlapStem}
DOWNSAMPLES = {'merge': PatchMerge, 'conv': ConvDownsample}


def make_stem(kind: str, in_chans: int, dim: int, patch_size: int, device=None, dtype=None) -> nn.Module:
    """Build the stem `kind`, one of `STEMS`.

    Raises:
        ValueError: If there is no such stem, or it does not take `patch_size`.
    """
    return _choose('stem', kind, STEMS)(in_chans, dim, patch_size, device=device, dtype=dtype)


def make_stages(
    downsample: str,
    depths: Sequence[int],
    dims: Sequence[int],
    drop_path_rate: float,
    block: Callable[[int, float], nn.Module] | Sequence[Callable[[int, float], nn.Module]],
    device=None,
    dtype=None,
) -> list[Stage]:
    """Build the stages.

    Args:
        downsample: What halves the map before each stage but the first, one of `DOWNSAMPLES`.
        depths: Blocks per stage.
        dims: Channels per stage.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        block: Builds a block from its channels and its drop path rate; or one such per stage.
        device: Where parameters go.
        dtype: Their type.

    Raises:
        ValueError: If `downsample` is none of these, or `depths` and `dims` differ in length.
    """
    halve = _choose('downsample', downsample, DOWNSAMPLES)
    if len(depths) != len(dims):
        raise ValueError(f'depths has {len(depths)} stages and dims {len(dims)}: they must be equal')
    rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
    return [
        Stage(
            halve(dims[i - 1], dim, device=device, dtype=dtype) if i else nn.Identity(),
            [(block[i] if isinstance(block, Sequence) else block)(dim, rate) for rate in rates[i]],
        )
        for i, dim in enumerate(dims)
    ]


def _choose(name: str, value: str, allowed: dict[str, type[nn.Module]]) -> type[nn.Module]:
    if value not in allowed:
        raise ValueError(f'{name} is {value!r}; allowed are {", ".join(allowed)}')
    return allowed[value]
