"""What the pages show for each family: the model of the examples, diagrams of its blocks, and its walks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .diagrams import Route

_LEGEND = (
    'C: channels; D: inner channels; z: what the gate reads, the second half of the first projection. A scan is '
    'h = exp(\u0394A) h + \u0394B x, y = C h + D x along its path; \u0394, B and C are projected from x.'
)


@dataclass(frozen=True)
class Drawing:
    """The drawings of one family.

    Attributes:
        example: The model of the examples.
        blocks: Diagrams, as `draw_blocks` takes them.
        scans: Walks, as `draw_paths` takes them; empty for a family without a scan.
        legend: The abbreviations in the diagrams.
    """

    example: str
    blocks: Mapping[str, list[Any]]
    scans: Mapping[str, Route] = field(default_factory=dict)
    legend: str = _LEGEND


def _residual(*branch: Any) -> tuple[Any, ...]:
    return ('+', [], list(branch))


_CROSS = ['scan \u2192', 'scan \u2193', 'scan \u2190', 'scan \u2191']


def _vim(join: str) -> dict[str, list[Any]]:
    return {
        'Block': [_residual('RMSNorm', 'Mamba, both ways')],
        'Mamba, both ways': [
            'Linear C \u2192 2D',
            (
                join,
                ['causal conv 4', 'SiLU', 'scan \u2192', '\u00d7 SiLU(z)'],
                ['anticausal conv 4', 'SiLU', 'scan \u2190', '\u00d7 SiLU(z)'],
            ),
            'Linear D \u2192 C',
        ],
    }


_BOTH_WAYS = {'1 forwards': Route('bidirectional', 0, 8), '2 backwards': Route('bidirectional', 1, 8)}
_WINDOW = {'name': 'list', 'of': [{'name': 'local', 'window': side} for side in (2, 4)]}
_CHOSEN = {
    'h: rows': Route('raster', 0, 8),
    'v: columns': Route('column', 0, 8),
    'w2: windows of 2': Route(_WINDOW, 0, 8),
    'windows of 4; w7 is alike': Route(_WINDOW, 1, 8),
}
_FOUR = 'Four directions are chosen for each layer: h, v, w2 or w7, each forwards or backwards.'
_NORMED_GATE = ('\u00d7', [], ['LayerNorm', 'mean over tokens', 'Linear, GELU', 'Linear, sigmoid'])
DRAWINGS = {
    'vmamba': Drawing(
        example='vmamba_tiny_s1l8',
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
            '1 rows': Route('cross', 0, 8),
            '2 columns': Route('cross', 1, 8),
            '3 rows backwards': Route('cross', 2, 8),
            '4 columns backwards': Route('cross', 3, 8),
        },
    ),
    'vim': Drawing(example='vim_tiny_patch16_224', blocks=_vim('mean'), scans=_BOTH_WAYS),
    'mambareg': Drawing(
        example='mambareg_small_patch16_224',
        blocks={
            **_vim('mean'),
            'Classifier': [
                'registers of the last block',
                'Linear C \u2192 C/q',
                'side by side, nC/q',
                'RMSNorm',
                'Linear to classes',
            ],
        },
        legend=f'{_LEGEND} n: registers. q: 2, 4 or 8; tiny has neither this projection nor the norm.',
        scans=_BOTH_WAYS,
    ),
    'videomamba': Drawing(example='videomamba_tiny_patch16_224', blocks=_vim('+'), scans=_BOTH_WAYS),
    'shufflemamba': Drawing(example='shufflemamba_tiny_patch16_224', blocks=_vim('mean'), scans=_BOTH_WAYS),
    'msvmamba': Drawing(
        example='msvmambav3_tiny',
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
        legend=f'{_LEGEND} r is 2, or 4 in the third version.',
        scans={
            'full size: rows': Route('raster', 0, 8),
            'half size: rows backwards,': Route('reversed', 0, 4),
            'then columns,': Route('cross', 1, 4),
            'then columns backwards': Route('cross', 3, 4),
        },
    ),
    'vssd': Drawing(
        example='vssd_tiny',
        blocks={
            'Block': [
                _residual('depthwise conv 3\u00d73'),
                _residual('LayerNorm', 'NC-SSD'),
                _residual('depthwise conv 3\u00d73'),
                _residual('LayerNorm', 'Linear C \u2192 4C', 'GELU', 'Linear 4C \u2192 C'),
            ],
            'NC-SSD': [
                'Linear C \u2192 D',
                (
                    '\u00d7',
                    ['depthwise conv 3\u00d73', 'SiLU', 'sum over tokens', 'LayerNorm'],
                    [],
                ),
                'Linear D \u2192 C',
            ],
        },
        legend=(
            'C: channels; D = 2C. Sum over tokens: S = sum of \u0394A B x over the image, per head; y = C S + D x. '
            'In the last stage, attention takes the place of NC-SSD.'
        ),
    ),
    'mobilemamba': Drawing(
        example='mobilemamba_t4',
        blocks={
            'Block': [
                (
                    '+',
                    [],
                    [
                        _residual('depthwise conv 3\u00d73, BatchNorm'),
                        _residual('MLP'),
                        _residual('Mixer'),
                        _residual('depthwise conv 3\u00d73, BatchNorm'),
                        _residual('MLP'),
                    ],
                ),
            ],
            'MLP': ['conv C \u2192 2C, BatchNorm', 'ReLU', 'conv 2C \u2192 C, BatchNorm'],
            'Mixer': [
                (
                    'concat',
                    [('+', ['SS2D', '\u00d7 scale'], ['Wavelets'])],
                    ['depthwise conv k\u00d7k, BatchNorm', 'ReLU', '\u00d7 scale, BatchNorm'],
                    [],
                ),
                'ReLU',
                'conv C \u2192 C, BatchNorm',
            ],
            'SS2D': [
                'conv G \u2192 2D, BatchNorm',
                (
                    '\u00d7',
                    [
                        'depthwise conv 3\u00d73',
                        'SiLU',
                        ('+', ['scan \u2192'], ['scan \u2190']),
                        'LayerNorm',
                    ],
                    ['SiLU'],
                ),
                'conv D \u2192 G, BatchNorm',
            ],
            'Wavelets': ['Haar: G \u2192 4G, half the size', 'depthwise conv k\u00d7k', '\u00d7 scale', 'inverse'],
        },
        legend=f'{_LEGEND} G: channels that are scanned; D = 2G; k: 7, 5 and 3 in the three stages.',
        scans={
            'rows': Route('bidirectional', 0, 4),
            'rows backwards': Route('bidirectional', 1, 4),
        },
    ),
    'efficientvmamba': Drawing(
        example='efficientvmamba_tiny',
        blocks={
            'Block, stages 1 and 2': [
                (
                    '+',
                    [],
                    [
                        'LayerNorm',
                        (
                            '+',
                            ['ES2D', 'Gate'],
                            ['depthwise conv 3\u00d73', 'BatchNorm, GELU', 'Linear C \u2192 C', 'Gate'],
                        ),
                    ],
                ),
            ],
            'ES2D': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    [
                        'depthwise conv 3\u00d73',
                        'SiLU',
                        ('join', *([f'scan, 1/4 {arrow}'] for arrow in '\u2192\u2193\u2192\u2193')),
                        'LayerNorm',
                    ],
                    ['SiLU'],
                ),
                'Linear D \u2192 C',
            ],
            'Gate': [_NORMED_GATE],
            'Block, stages 3 and 4': [
                _residual(
                    'Linear C \u2192 4C, BatchNorm, ReLU',
                    'depthwise conv 3\u00d73, BatchNorm, ReLU',
                    'squeeze and excitation',
                    'Linear 4C \u2192 C, BatchNorm',
                ),
            ],
        },
        legend=f'{_LEGEND} D = 2C. Both gates of a block are one. Join: each token gets the result of its own walk.',
        scans={
            'from (0, 0), by rows': Route('atrous', 0, 8),
            'from (1, 0), by columns': Route('atrous', 1, 8),
            'from (0, 1), by rows': Route('atrous', 2, 8),
            'from (1, 1), by columns': Route('atrous', 3, 8),
        },
    ),
    'vcmamba': Drawing(
        example='vcmamba_s',
        blocks={
            'Convolutional block': [_residual('MLP', '\u00d7 scale')],
            'Mamba block': [_residual('BatchNorm', 'Mixer'), _residual('BatchNorm', 'MLP')],
            'MLP': [
                'Linear C \u2192 4C, BatchNorm, GELU',
                'depthwise conv 3\u00d73, BatchNorm, GELU',
                'Linear 4C \u2192 C, BatchNorm',
            ],
            'Mixer': [
                'Linear C \u2192 D, BatchNorm',
                'depthwise conv 7\u00d77',
                'SiLU',
                ('+', *([scan] for scan in _CROSS)),
                'LayerNorm, ReLU',
                'Linear D \u2192 C, BatchNorm',
            ],
        },
        legend=f'{_LEGEND} D = 2C. The walks are snakes, and share all parameters; each adds a term to B by its moves.',
        scans={
            'rows': Route('plainmamba', 0, 7),
            'rows backwards': Route('plainmamba', 1, 7),
            'columns': Route('plainmamba', 2, 7),
            'columns backwards': Route('plainmamba', 3, 7),
        },
    ),
    'spatialmamba': Drawing(
        example='spatialmamba_tiny',
        blocks={
            'Block': [
                _residual('depthwise conv 3\u00d73'),
                _residual('LayerNorm', 'Mixer'),
                _residual('depthwise conv 3\u00d73'),
                _residual('LayerNorm', 'Linear C \u2192 4C', 'GELU', 'Linear 4C \u2192 C'),
            ],
            'Mixer': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    [
                        'depthwise conv 3\u00d73',
                        'SiLU',
                        ('+', ['scan \u2192, all states', 'fusion', '\u00d7 C'], ['\u00d7 D']),
                        'LayerNorm',
                    ],
                    ['z', 'SiLU'],
                ),
                'Linear D \u2192 C',
            ],
            'Fusion': [
                (
                    '+',
                    ['depthwise conv 3\u00d73'],
                    ['depthwise conv 3\u00d73, dilation 3'],
                    ['depthwise conv 3\u00d73, dilation 5'],
                ),
            ],
        },
        scans={'rows': Route('raster', 0, 8)},
    ),
    'localvim': Drawing(
        example='localvim_tiny_patch16_224',
        blocks={
            'Block': ['turn by position', _residual('RMSNorm', 'Mamba, four ways')],
            'Mamba, four ways': [
                'Linear C \u2192 2D',
                ('+', *([f'causal conv 4, {k}', 'SiLU', f'scan {k}', '\u00d7 SiLU(z)', 'Gate'] for k in range(1, 5))),
                'Linear D \u2192 C',
            ],
            'Gate': [_NORMED_GATE],
        },
        legend=f'{_LEGEND} {_FOUR} The convolution goes along the walk. The gates of a block are one.',
        scans=_CHOSEN,
    ),
    'localvmamba': Drawing(
        example='localvmamba_small',
        blocks={
            'Block': [_residual('LayerNorm', 'SS2D')],
            'SS2D': [
                'Linear C \u2192 2D',
                (
                    '\u00d7',
                    [
                        'depthwise conv 3\u00d73',
                        'SiLU',
                        ('+', *([f'scan {k}', 'Gate'] for k in range(1, 5))),
                        'LayerNorm',
                    ],
                    ['SiLU'],
                ),
                'Linear D \u2192 C',
            ],
            'Gate': [_NORMED_GATE],
        },
        legend=f'{_LEGEND} D = 2C. {_FOUR} The gates of a block are one.',
        scans=_CHOSEN,
    ),
    'groupmamba': Drawing(
        example='groupmamba_tiny',
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
            'channels 1/4': Route('groupwise', 0, 8),
            'channels 2/4': Route('groupwise', 1, 8),
            'channels 3/4': Route('groupwise', 2, 8),
            'channels 4/4': Route('groupwise', 3, 8),
        },
    ),
    'plainmamba': Drawing(
        example='plainmamba_l1',
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
            '1 rows': Route('plainmamba', 0, 8),
            '2 rows backwards': Route('plainmamba', 1, 8),
            '3 columns': Route('plainmamba', 2, 8),
            '4 columns backwards': Route('plainmamba', 3, 8),
        },
    ),
    'lbvim': Drawing(
        example='lbvim_tiny_patch16_224',
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
            'even blocks': Route('raster', 0, 8),
            'odd blocks': Route('reversed', 0, 8),
            'in windows of 8': Route('raster', 0, 8, window=8),
        },
    ),
    'a2mamba': Drawing(
        example='a2mamba_nano',
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
        scans={'rows': Route('raster', 0, 8)},
    ),
    'mambavision': Drawing(
        example='mambavision_tiny',
        blocks={
            'Stages 1, 2': [_residual('conv 3\u00d73', 'BatchNorm', 'GELU', 'conv 3\u00d73', 'BatchNorm')],
            'Stages 3, 4: first half': [
                _residual('LayerNorm', 'Mixer'),
                _residual('LayerNorm', 'Linear C \u2192 4C', 'GELU', 'Linear 4C \u2192 C'),
            ],
            'Stages 3, 4: second half': [
                _residual('LayerNorm', 'window attention'),
                _residual('LayerNorm', 'Linear C \u2192 4C', 'GELU', 'Linear 4C \u2192 C'),
            ],
            'Mixer': [
                'Linear C \u2192 C',
                (
                    'concat',
                    ['depthwise conv 3', 'SiLU', 'scan \u2192'],
                    ['depthwise conv 3', 'SiLU'],
                ),
                'Linear C \u2192 C',
            ],
        },
        scans={'rows of a window': Route('raster', 0, 7)},
        legend=(
            'C: channels, of which either branch of the mixer has half. A scan is h = exp(\u0394A) h + \u0394B x, '
            'y = C h + D x along its path; \u0394, B and C are projected from x. '
            'Not drawn: the layer scales from base on.'
        ),
    ),
    'mambaout': Drawing(
        example='mambaout_femto',
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
