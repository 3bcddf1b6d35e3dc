"""What the model cards say about the families beside what the registry knows: facts of the papers and repositories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .diagrams import Path

_LEGEND = (
    'C: channels; D: inner channels; z: what the gate reads, the second half of the first projection. A scan is '
    'h = exp(\u0394A) h + \u0394B x, y = C h + D x along its path; \u0394, B and C are projected from x.'
)


@dataclass(frozen=True)
class Family:
    """One family. Its prose, and its citation, are in `_cards/<key>.md`.

    Attributes:
        title: Name in prose.
        pattern: Wildcards of its registered names.
        models: The one that examples use, and the tiny one that stands for it in tests.
        paper: Title, arXiv number and where it was published.
        code: Official repository, the commit of it that was read, and its licence.
        blocks: Diagrams, as `_diagrams.draw_blocks` takes them.
        scans: Walks, as `_diagrams.draw_paths` takes them; empty for a family without a scan.
        legend: What the diagrams abbreviate.
    """

    title: str
    pattern: str
    models: tuple[str, str]
    paper: tuple[str, str, str]
    code: tuple[str, str, str]
    blocks: Mapping[str, list[Any]]
    scans: Mapping[str, Path] = field(default_factory=dict)
    legend: str = _LEGEND


def _residual(*branch: Any) -> tuple[Any, ...]:
    return ('+', [], list(branch))


_CROSS = ['scan \u2192', 'scan \u2193', 'scan \u2190', 'scan \u2191']
FAMILIES = {
    'vmamba': Family(
        title='VMamba',
        pattern='vmamba_*',
        models=('vmamba_tiny_s1l8', 'test_vmamba'),
        paper=('VMamba: Visual State Space Model', '2401.10166', 'NeurIPS 2024'),
        code=('https://github.com/MzeroMiko/VMamba', 'read at 2ed52ead', 'MIT'),
        blocks={
            'Block': [
                _residual('LayerNorm', 'SS2D'),
                _residual('LayerNorm', 'Linear C \u2192 4C', 'GELU', 'Linear 4C \u2192 C'),
            ],
            'SS2D': [
                'Linear C \u2192 D',
                'depthwise conv 3\u00d73',
                'SiLU',
                ('+', *([scan] for scan in _CROSS)),
                'LayerNorm',
                'Linear D \u2192 C',
            ],
            'Block, first release': [_residual('LayerNorm', 'SS2D, gated')],
            'SS2D, gated': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    ['depthwise conv 3\u00d73', 'SiLU', ('+', *([scan] for scan in _CROSS)), 'LayerNorm'],
                    ['SiLU'],
                ),
                'Linear D \u2192 C',
            ],
        },
        scans={
            '1 rows': Path('cross', 0, 8),
            '2 columns': Path('cross', 1, 8),
            '3 rows backwards': Path('cross', 2, 8),
            '4 columns backwards': Path('cross', 3, 8),
        },
    ),
    'vim': Family(
        title='Vision Mamba (Vim)',
        pattern='vim_*',
        models=('vim_tiny_patch16_224', 'test_vim'),
        paper=(
            'Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model',
            '2401.09417',
            'ICML 2024',
        ),
        code=('https://github.com/hustvl/Vim', 'read at dd0358ad', 'Apache-2.0'),
        blocks={
            'Block': [_residual('RMSNorm', 'Mamba, both ways')],
            'Mamba, both ways': [
                'Linear C \u2192 2D',
                (
                    'mean',
                    ['causal conv 4', 'SiLU', 'scan \u2192', '\u00d7 SiLU(z)'],
                    ['anticausal conv 4', 'SiLU', 'scan \u2190', '\u00d7 SiLU(z)'],
                ),
                'Linear D \u2192 C',
            ],
        },
        scans={'1 forwards': Path('bidirectional', 0, 8), '2 backwards': Path('bidirectional', 1, 8)},
    ),
    'msvmamba': Family(
        title='MSVMamba',
        pattern='msvmamba*',
        models=('msvmambav3_tiny', 'test_msvmambav3'),
        paper=('Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model', '2405.14174', 'NeurIPS 2024'),
        code=('https://github.com/YuHengsss/MSVMamba', 'read at c3940191, its branch v2 at fca4a391', 'none stated'),
        blocks={
            'Block': [_residual('LayerNorm', 'MS2D'), _residual('LayerNorm', 'ConvFFN')],
            'MS2D': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    [
                        (
                            '+',
                            ['depthwise conv 3\u00d73', 'SiLU', 'scan \u2192', 'LayerNorm'],
                            [
                                'depthwise conv 7\u00d77 / 2',
                                'SiLU',
                                'scan \u2190 \u2193 \u2191, half size',
                                'LayerNorm',
                                'upsample \u00d72',
                            ],
                        ),
                        'squeeze-excitation',
                    ],
                    ['SiLU'],
                ),
                'Linear D \u2192 C',
            ],
            'ConvFFN': ['Linear C \u2192 rC', _residual('depthwise conv 3\u00d73'), 'GELU', 'Linear rC \u2192 C'],
            'Block, v3': [_residual('LayerNorm', 'MS2D, v3'), _residual('ConvFFN', 'LayerNorm')],
            'MS2D, v3': [
                'Linear C \u2192 C',
                (
                    '+',
                    ['depthwise conv 3\u00d73', 'SiLU', 'scan \u2192'],
                    ['depthwise conv 7\u00d77 / 2', 'SiLU', 'scan \u2190 \u2193 \u2191, half size', 'upsample \u00d72'],
                ),
                'LayerNorm',
                'squeeze-excitation',
                'Linear C \u2192 C',
            ],
        },
        legend=f'{_LEGEND} r is 2, in the third version 4.',
        scans={
            'full size: rows': Path('raster', 0, 8),
            'half size: rows backwards,': Path('reversed', 0, 4),
            'then columns,': Path('cross', 1, 4),
            'then columns backwards': Path('cross', 3, 4),
        },
    ),
    'groupmamba': Family(
        title='GroupMamba',
        pattern='groupmamba_*',
        models=('groupmamba_tiny', 'test_groupmamba'),
        paper=('GroupMamba: Efficient Group-Based Visual State Space Model', '2407.13772', 'CVPR 2025'),
        code=('https://github.com/Amshaker/GroupMamba', 'read at c1800ed2', 'MIT'),
        blocks={
            'Block': [
                _residual('Group mixer'),
                _residual('LayerNorm', 'Linear C \u2192 rC', 'depthwise conv 3\u00d73', 'GELU', 'Linear rC \u2192 C'),
            ],
            'Group mixer': [
                'LayerNorm: n',
                (
                    '\u00d7',
                    [
                        ('concat', *([f'VSSS {scan[-1]}'] for scan in _CROSS)),
                        '\u00d7 skip scale \u00d7 n',
                    ],
                    ['mean over tokens', 'Linear, ReLU', 'Linear, sigmoid'],
                ),
                'LayerNorm, same weights',
                'Linear C \u2192 C',
            ],
            'VSSS, on C/4 channels': [
                'Linear C/4 \u2192 2 C/4',
                ('\u00d7', ['depthwise conv 3\u00d73', 'SiLU', 'scan, one direction', 'LayerNorm'], ['SiLU']),
                'Linear C/4 \u2192 C/4',
            ],
        },
        legend=f'{_LEGEND} r is 8, 8, 4, 4 in the four stages.',
        scans={
            'channels 1/4': Path('groupwise', 0, 8),
            'channels 2/4': Path('groupwise', 1, 8),
            'channels 3/4': Path('groupwise', 2, 8),
            'channels 4/4': Path('groupwise', 3, 8),
        },
    ),
    'plainmamba': Family(
        title='PlainMamba',
        pattern='plainmamba_*',
        models=('plainmamba_l1', 'test_plainmamba'),
        paper=('PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition', '2403.17695', 'BMVC 2024'),
        code=('https://github.com/ChenhongyiYang/PlainMamba', 'read at 0975a1d', 'Apache-2.0'),
        blocks={
            'Block': [_residual('LayerNorm', 'Mixer')],
            'Mixer': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    [
                        'depthwise conv 7\u00d77',
                        'SiLU',
                        ('+', ['scan \u2192'], ['scan \u2190'], ['scan \u2193'], ['scan \u2191']),
                    ],
                    ['SiLU'],
                ),
                'Linear D \u2192 C',
            ],
        },
        scans={
            '1 rows': Path('plainmamba', 0, 8),
            '2 rows backwards': Path('plainmamba', 1, 8),
            '3 columns': Path('plainmamba', 2, 8),
            '4 columns backwards': Path('plainmamba', 3, 8),
        },
    ),
    'lbvim': Family(
        title='LBVim (LBMamba)',
        pattern='lbvim_*',
        models=('lbvim_tiny_patch16_224', 'test_lbvim'),
        paper=('LBMamba: Locally Bi-directional Mamba', '2506.15976', 'arXiv 2025'),
        code=('https://github.com/cvlab-stonybrook/LBMamba', 'read at 5215551', 'none stated'),
        blocks={
            'Block': [_residual('RMSNorm', 'LBMamba'), 'reverse the sequence'],
            'LBMamba': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    ['causal conv 4', 'SiLU', ('+', ['scan \u2192, all'], ['scan \u2190, windows'])],
                    ['SiLU'],
                ),
                'Linear D \u2192 C',
            ],
        },
        scans={
            'even blocks': Path('raster', 0, 8),
            'odd blocks': Path('reversed', 0, 8),
            'in windows of 8': Path('raster', 0, 8, window=8),
        },
    ),
    'a2mamba': Family(
        title='A2Mamba',
        pattern='a2mamba_*',
        models=('a2mamba_nano', 'test_a2mamba'),
        paper=('A2Mamba: Attention-augmented State Space Models for Visual Recognition', '2507.16624', 'arXiv 2025'),
        code=('https://github.com/LMMMEng/A2Mamba', '', 'none stated'),
        blocks={
            'Block': [
                _residual('depthwise conv 3\u00d73'),
                _residual('LayerNorm', 'MASS'),
                _residual('depthwise conv 3\u00d73'),
                _residual('LayerNorm', 'conv 1\u00d71', 'GELU', _residual('depthwise conv 3\u00d73'), 'conv 1\u00d71'),
            ],
            'MASS': [
                (
                    '\u00d7',
                    [
                        'conv 1\u00d71: q, k, v',
                        (
                            '+',
                            [
                                (
                                    'concat',
                                    ['window attention of v\u2081: o\u2081'],
                                    ['dilated attention of v\u2082 + o\u2081'],
                                ),
                                'A2SSM (stage 4: attention)',
                                'LayerNorm',
                            ],
                            ['depthwise conv 5\u00d75 of v'],
                        ),
                    ],
                    ['conv 1\u00d71', 'BatchNorm', 'SiLU'],
                ),
                'LayerNorm',
                'conv 1\u00d71',
            ],
            'A2SSM': [
                'depthwise conv 5\u00d75',
                'SiLU',
                (
                    '+',
                    ['scan \u2192, all states', 'gather by attention 1, 2', 'conv 1\u00d71 over heads', '\u00d7 C'],
                    ['\u00d7 D'],
                ),
            ],
        },
        scans={'rows': Path('raster', 0, 8)},
    ),
    'mambaout': Family(
        title='MambaOut',
        pattern='mambaout_*',
        models=('mambaout_femto', 'test_mambaout'),
        paper=('MambaOut: Do We Really Need Mamba for Vision?', '2405.07992', 'CVPR 2025'),
        code=('https://github.com/yuweihao/MambaOut', '', 'Apache-2.0'),
        blocks={
            'Block': [_residual('LayerNorm', 'Gated CNN')],
            'Gated CNN': [
                'Linear C \u2192 2H',
                ('\u00d7', ['GELU'], [('concat', [], ['depthwise conv 7\u00d77'])]),
                'Linear H \u2192 C',
            ],
        },
        legend='C: channels; H: inner channels, 8/3 C. The last C channels go through the convolution.',
    ),
}


def family_of(model: str) -> str | None:
    """Key of the family of a registered name, with or without tag and `test_`; None if it is no family of ours."""
    name = model.removeprefix('test_')
    return next((key for key in FAMILIES if name.startswith(key)), None)
