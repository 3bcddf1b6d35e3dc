"""Upstream's names of weights to ours: the tool, and the names that VMamba's descendants share."""

import re
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from visionssm.layers import ConvDownsample, OverlapStem, PatchStem

from .pyramid import Pyramid
from .vssm import PatchMerge

Renames = Sequence[tuple[str, str | Callable[[re.Match], str]]]


def rename(
    state_dict: dict[str, Tensor], replacements: Iterable[tuple[str, str | Callable[[re.Match], str]]]
) -> dict[str, Tensor]:
    """The same tensors under names with every (pattern, replacement) of `re.sub` applied in turn."""
    renamed = {}
    for name, x in state_dict.items():
        for pattern, new in replacements:
            name = re.sub(pattern, new, name)
        renamed[name] = x
    return renamed


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
# gates of LocalMamba's directions
GATE_RENAMES: Renames = [
    (r'\.(?:multi_scan\.)?attn\.norm\.', '.direction_gate.norm.'),
    (r'\.(?:multi_scan\.)?attn\.global_reduce\.', '.direction_gate.fc1.'),
    (r'\.(?:multi_scan\.)?attn\.channel_select\.', '.direction_gate.fc2.'),
]
# stem, downsampling and head of MLLA's descendants
MLLA_RENAMES: Renames = [
    (r'^backbone\.', ''),
    (r'^patch_embed\.conv1\.', 'stem.conv1.'),
    (r'^patch_embed\.conv2\.0\.', 'stem.conv2.'),
    (r'^patch_embed\.conv2\.1\.', 'stem.conv3.'),
    (r'^patch_embed\.conv3\.0\.', 'stem.conv4.'),
    (r'^patch_embed\.conv3\.1\.', 'stem.conv5.'),
    (r'^(stem\.conv\d)\.norm\.', r'\1.bn.'),
    (r'^layers\.(\d+)\.downsample\.', lambda match: f'stages.{int(match[1]) + 1}.downsample.'),
    (r'\.downsample\.conv\.0\.conv\.', '.downsample.fc1.'),
    (r'\.downsample\.conv\.1\.conv\.', '.downsample.conv.'),
    (r'\.downsample\.conv\.2\.conv\.', '.downsample.fc2.conv.'),
    (r'\.downsample\.conv\.2\.norm\.', '.downsample.fc2.bn.'),
    (r'^layers\.', 'stages.'),
    (r'^head\.(?!fc\.)', 'head.fc.'),
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
        # upstream counts a downsampling as part of the stage before it
        return f'stages.{int(match[1]) + 1}.downsample.{downsample.get(match[2], match[2])}.'

    return [
        (r'^patch_embed\.(\w+)\.', of_stem),
        (r'^layers\.(\d+)\.downsample\.(\w+)\.', of_stage),
        (r'^layers\.', 'stages.'),
    ]
