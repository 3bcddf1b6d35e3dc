"""What VMamba and the pyramids grown from it share: stems, downsampling, and upstream's checkpoint names."""

import re
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from visionssm.layers import ConvDownsample, OverlapStem, PatchStem

from .base import Pyramid, Stage


class PatchMerge(PatchMerging):
    """timm's `PatchMerging`, (B, H, W, C) to (B, H / 2, W / 2, D) rounded up, with sizes that compilers can simplify.

    timm's own nest a remainder and a quotient per stage: compiling with dynamic shapes takes twice as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        batch, height, width, channels = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, [0, 0, 0, 2 * columns - width, 0, 2 * rows - height])
        x = x.reshape(batch, rows, 2, columns, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


STEMS = {'patch': PatchStem, 'overlap': OverlapStem}
DOWNSAMPLES = {'merge': PatchMerge, 'conv': ConvDownsample}

Renames = Sequence[tuple[str, str | Callable[[re.Match], str]]]


def make_stem(kind: str, in_chans: int, dim: int, patch_size: int, device=None, dtype=None) -> nn.Module:
    """Build the stem `kind`, one of `STEMS`.

    Raises:
        ValueError: If it is another, or the stem does not take `patch_size`.
    """
    return _choose('stem', kind, STEMS)(in_chans, dim, patch_size, device=device, dtype=dtype)


def make_stages(
    downsample: str,
    depths: Sequence[int],
    dims: Sequence[int],
    drop_path_rate: float,
    block: Callable[[int, float], nn.Module],
    device=None,
    dtype=None,
) -> list[Stage]:
    """Build the stages.

    Args:
        downsample: What halves the map before each stage but the first, one of `DOWNSAMPLES`.
        depths: Blocks per stage.
        dims: Channels per stage.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.
        block: Builds a block from its channels and its drop path rate.
        device: Where parameters go.
        dtype: Their type.

    Raises:
        ValueError: If `downsample` is another, or `depths` and `dims` differ in length.
    """
    halve = _choose('downsample', downsample, DOWNSAMPLES)
    if len(depths) != len(dims):
        raise ValueError(f'depths has {len(depths)} stages and dims {len(dims)}: they must be equal')
    rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
    return [
        Stage(
            halve(dims[i - 1], dim, device=device, dtype=dtype) if i else nn.Identity(),
            [block(dim, rate) for rate in rates[i]],
        )
        for i, dim in enumerate(dims)
    ]


def _choose(name: str, value: str, allowed: dict[str, type[nn.Module]]) -> type[nn.Module]:
    if value not in allowed:
        raise ValueError(f'{name} is {value!r}; allowed are {", ".join(allowed)}')
    return allowed[value]


# inside a mixer, whatever it is called
SCAN_RENAMES: Renames = [
    (r'\.out_norm\.', '.norm.'),
    (r'\.conv2d\.(?:1\.)?', '.conv.'),
    (r'\.x_proj[._]weight$', '.ssm.x_proj_weight'),
    (r'\.dt_projs[._]weight$', '.ssm.dt_proj_weight'),
    (r'\.dt_projs_bias$', '.ssm.dt_proj_bias'),
    (r'\.A_logs$', '.ssm.A_log'),
    (r'\.Ds$', '.ssm.D'),
]
# VMamba's names in order of replacement: three generations of files, one result
VSSM_RENAMES: Renames = [
    (r'^backbone\.', ''),
    (r'^patch_embed\.proj\.', 'patch_embed.0.'),
    (r'^patch_embed\.norm\.', 'patch_embed.2.'),
    (r'^(?:classifier\.)?norm\.', 'norm.'),
    (r'^(?:classifier\.)?head\.(?!fc\.)', 'head.fc.'),
    (r'\.ln_1\.', '.norm.'),
    (r'^(layers\.\d+\.blocks\.\d+)\.norm\.', r'\1.norm1.'),
    (r'\.(?:self_attention|op)\.', '.mixer.'),
    *SCAN_RENAMES,
]
_STEM = {
    PatchStem: {'0': 'conv', '2': 'norm'},
    OverlapStem: {'0': 'conv1', '2': 'norm1', '5': 'conv2', '7': 'norm2'},
}
_DOWNSAMPLE = {
    PatchMerge: {'norm': 'norm', 'reduction': 'reduction', '1': 'norm', '2': 'reduction'},
    ConvDownsample: {'1': 'conv', '3': 'norm'},
}


def place_renames(model: Pyramid) -> Renames:
    """VMamba's numbered modules of stem and downsampling, by what the model has there; then stages."""
    stem = _STEM[type(model.stem)]
    downsample = _DOWNSAMPLE.get(type(model.stages[-1].downsample), {})

    def of_stem(match: re.Match) -> str:
        return f'stem.{stem.get(match[1], match[1])}.'

    def of_stage(match: re.Match) -> str:
        # upstream counts a downsampling to the stage before it
        return f'stages.{int(match[1]) + 1}.downsample.{downsample.get(match[2], match[2])}.'

    return [
        (r'^patch_embed\.(\w+)\.', of_stem),
        (r'^layers\.(\d+)\.downsample\.(\w+)\.', of_stage),
        (r'^layers\.', 'stages.'),
    ]
