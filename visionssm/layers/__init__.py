"""Modules that several families are built from."""

from .attention import SelfAttention
from .conv import BottleneckDownsample, BottleneckStem, DepthwiseConv, PositionedBlock
from .convnorm import ConvNorm, scale_and_shift
from .embed import (
    ConvDownsample,
    GridEmbed,
    OverlapStem,
    PatchStem,
    Stem,
    StridedPatchEmbed,
    channels_last,
    check_image_size,
    resample_grid,
    spread,
    whole_side,
)
from .functional import FastLinears, Linear, attention, is_untouched, linear, na_av, na_bias, na_qk, scan_tokens
from .mamba import STREAM_NORMS, MambaBlock, MambaMixer, StreamLayerNorm, StreamNorm, window_by_length
from .mlp import ChannelGate, DepthwiseMlp, Mlp, NormedGate
from .path import PathScan, walk_with_moves
from .pyramid import FinerLevels, ResamplePyramid, SimplePyramid
from .scanning import LayerScans, ScanningModule, ScanSpec, change_scan, check_local_window
from .ss2d import SS2D
from .ssm import (
    SelectiveSSM,
    StepProjection,
    at_least_fp32,
    decay_rates,
    init_A_log,
    init_dt_bias,
    join_projections,
    linear_without_autocast,
    split_projection,
    split_projections,
)
from .states import StateScan

__all__ = [
    'SS2D',
    'STREAM_NORMS',
    'BottleneckDownsample',
    'BottleneckStem',
    'ChannelGate',
    'ConvDownsample',
    'ConvNorm',
    'DepthwiseConv',
    'DepthwiseMlp',
    'FastLinears',
    'FinerLevels',
    'GridEmbed',
    'LayerScans',
    'Linear',
    'MambaBlock',
    'MambaMixer',
    'Mlp',
    'NormedGate',
    'OverlapStem',
    'PatchStem',
    'PathScan',
    'PositionedBlock',
    'ResamplePyramid',
    'ScanSpec',
    'ScanningModule',
    'SelectiveSSM',
    'SelfAttention',
    'SimplePyramid',
    'StateScan',
    'Stem',
    'StepProjection',
    'StreamLayerNorm',
    'StreamNorm',
    'StridedPatchEmbed',
    'at_least_fp32',
    'attention',
    'change_scan',
    'channels_last',
    'check_image_size',
    'check_local_window',
    'decay_rates',
    'init_A_log',
    'init_dt_bias',
    'is_untouched',
    'join_projections',
    'linear',
    'linear_without_autocast',
    'na_av',
    'na_bias',
    'na_qk',
    'resample_grid',
    'scale_and_shift',
    'scan_tokens',
    'split_projection',
    'split_projections',
    'spread',
    'walk_with_moves',
    'whole_side',
    'window_by_length',
]
