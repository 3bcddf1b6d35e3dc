"""What is published of every family, once: models with their cost, and files with all that is known of them.

Everything that lists, describes, downloads or cites them is made from these records: timm's tags, `visionssm list`,
`info` and `weights`, model cards, headers of configs, metafiles. What an authors' page states stands here as a value of
its own; nothing is read back out of a sentence.

Sources, per family: the README of the repository at the commit given, the pages of the files on the Hub, and

- VMamba: assets/performance.md; MSVMamba, GroupMamba, PlainMamba, A2Mamba, MambaOut: the tables of the papers;
- Vim: GFLOPs as later papers quote them, since its own gives none. LBVim's, and those of VMamba's Mamba-2 form, are not
  known.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .records import Family, Model, Published

_MASK, _MASK3, _UPER = 'mask_rcnn_1x', 'mask_rcnn_3x', 'upernet_160k'
# why a count is not what is printed
_NORMS = 'theirs (fvcore) adds 5 for each value that a norm reads'
_NO_SCAN = 'theirs is without the scan'
_NO_HEAD = 'theirs is without the classifier'
_NO_MIXERS = 'theirs is without scans and attention; ours without them is {}'
_PROJECTIONS = 'theirs is about that of the first and last projections of blocks and of patches; {} here'
_UNCOUNTED = 'how theirs was counted is not published'
_UNKNOWN = f'{_UNCOUNTED}; ours is {{}} in matrix products, the rest in the scan'


def _metrics(dataset: str, values: Sequence[float]) -> dict[str, float]:
    names = ('box AP', 'mask AP') if dataset == 'coco' else ('mIoU', 'mIoU (multi-scale)')
    return dict(zip(names, values, strict=False))


def _unpublished(*rows: tuple[Any, ...]) -> dict[str, dict[str, float]]:
    """Rows of a name and its metrics."""
    return {name: _metrics(name.rpartition('_')[2], values) for name, *values in rows}


# VMamba

_VMAMBA = 'https://github.com/MzeroMiko/VMamba'
_VMAMBA_FILES = f'{_VMAMBA}/releases/download'


def _vmamba(model: str, file: str, top1: float, averaged: bool = True) -> Published:
    # inferred: the reported accuracies are the average's, and upstream's loaders read this key
    contents = ', which holds the moving average (EMA)' if averaged else '; trained without a moving average'
    return Published(
        model=f'vmamba_{model}',
        tag='in1k',
        metrics={'top-1': top1},
        license='mit',
        origin_url=_VMAMBA,
        url=f'{_VMAMBA_FILES}/%23{file}.pth',
        container='model',
        contents=contents,
    )


def _vmamba_dense(model: str, method: str, dataset: str, file: str, *values: float) -> Published:
    return Published(
        model=f'vmamba_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='mit',
        origin_url=_VMAMBA,
        url=f'{_VMAMBA_FILES}/%23{file}.pth',
        container='state_dict',
    )


VMAMBA = Family(
    key='vmamba',
    title='VMamba',
    paper='VMamba: Visual State Space Model',
    arxiv='2401.10166',
    venue='NeurIPS 2024',
    repository=_VMAMBA,
    commit='2ed52ead062a51a64521ed3871d52914bf532876',
    license='mit',
    models={
        'vmamba_tiny_s1l8': Model(30_249_064, 4_875_843_072, '30', '4.9'),
        'vmamba_small_s1l20': Model(49_012_840, 8_568_897_024, '49', '8.6'),
        'vmamba_base_s1l20': Model(86_614_504, 15_163_107_328, '87', '15.2'),
        'vmamba_tiny_s2l5': Model(30_705_832, 4_824_588_288, '31', '4.9', _NORMS),
        'vmamba_small_s2l15': Model(50_147_752, 8_667_568_128, '50', '8.7'),
        'vmamba_base_s2l15': Model(88_557_800, 15_294_668_800, '89', '15.4'),
        'vmamba_vanilla_tiny': Model(22_893_448, 5_597_700_096, '23', '5.6'),
        'vmamba_vanilla_small': Model(44_417_416, 11_181_987_840, '44', '11.2'),
        'vmamba_vanilla_base': Model(76_254_056, 17_953_595_392, '76', '18.0'),
        'vmamba_tiny_m2': Model(25_340_296, 7_119_312_384),
        'vmamba_small_m2': Model(39_079_816, 11_192_600_064),
        'vmamba_base_m2': Model(67_527_528, 17_524_590_592),
        'vmamba_nano': Model(1_761_384, 244_224_256),
        'test_vmamba': Model(511_784, 12_137_600),
    },
    files=(
        _vmamba('tiny_s1l8', 'v2cls/vssm1_tiny_0230s_ckpt_epoch_264', 82.6),
        _vmamba('small_s1l20', 'v2cls/vssm1_small_0229s_ckpt_epoch_240', 83.3),
        _vmamba('base_s1l20', 'v2cls/vssm1_base_0229s_ckpt_epoch_225', 83.8),
        _vmamba('tiny_s2l5', 'v2cls/vssm_tiny_0230_ckpt_epoch_262', 82.5),
        _vmamba('small_s2l15', 'v2cls/vssm_small_0229_ckpt_epoch_222', 83.6),
        _vmamba('base_s2l15', 'v2cls/vssm_base_0229_ckpt_epoch_237', 83.9),
        _vmamba('vanilla_tiny', 'v0cls/vssmtiny_dp01_ckpt_epoch_292', 82.2, averaged=False),
        _vmamba('vanilla_small', 'v0cls/vssmsmall_dp03_ckpt_epoch_238', 83.5),
        _vmamba('vanilla_base', 'v0cls/vssmbase_dp06_ckpt_epoch_241', 83.7),
        _vmamba_dense('vanilla_tiny', _MASK, 'coco', 'v0det/vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12', 46.5, 42.1),
        _vmamba_dense('vanilla_small', _MASK, 'coco', 'v0det/vssmsmall_mask_rcnn_swin_fpn_coco_epoch_12', 48.2, 43.0),
        _vmamba_dense('vanilla_base', _MASK, 'coco', 'v0det/vssmbase_mask_rcnn_swin_fpn_coco_epoch_12', 48.6, 43.3),
        _vmamba_dense('tiny_s2l5', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_epoch_12', 47.4, 42.7),
        _vmamba_dense('small_s2l15', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_small_epoch_11', 48.7, 43.7),
        _vmamba_dense('base_s2l15', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_base_epoch_11', 49.2, 44.1),
        _vmamba_dense(
            'base_s2l15', f'{_MASK}_bs8', 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_base_epoch_12_bs8', 49.2, 43.9
        ),
        _vmamba_dense('tiny_s1l8', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12', 47.3, 42.7),
        _vmamba_dense(
            'vanilla_tiny', _MASK3, 'coco', 'v0det/vssmtiny_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34', 48.5, 43.2
        ),
        _vmamba_dense(
            'vanilla_small', _MASK3, 'coco', 'v0det/vssmsmall_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34', 49.7, 44.0
        ),
        _vmamba_dense('tiny_s2l5', _MASK3, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_epoch_36', 48.9, 43.7),
        _vmamba_dense('small_s2l15', _MASK3, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_small_ms_3x_epoch_32', 49.9, 44.2),
        _vmamba_dense('tiny_s1l8', _MASK3, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_s_epoch_31', 48.8, 43.7),
        _vmamba_dense(
            'vanilla_tiny', _UPER, 'ade20k', 'v0seg/vssmtiny_upernet_4xb4-160k_ade20k-512x512_iter_160000', 47.3, 48.3
        ),
        _vmamba_dense(
            'vanilla_small', _UPER, 'ade20k', 'v0seg/vssmsmall_upernet_4xb4-160k_ade20k-512x512_iter_160000', 49.5, 50.5
        ),
        _vmamba_dense(
            'vanilla_base', _UPER, 'ade20k', 'v0seg/vssmbase_upernet_4xb4-160k_ade20k-512x512_iter_128000', 50.0, 51.3
        ),
        _vmamba_dense(
            'tiny_s2l5', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_iter_160000', 48.3, 48.6
        ),
        _vmamba_dense(
            'small_s2l15', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_small_iter_144000', 50.6, 51.2
        ),
        _vmamba_dense(
            'base_s2l15', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000', 51.0, 51.6
        ),
        _vmamba_dense(
            'tiny_s1l8', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000', 47.9, 48.8
        ),
    ),
)

# Vim

_VIM = 'https://github.com/hustvl/Vim'


def _vim(size: str, model: str, revision: str, file: str, top1: float, megabytes: int, sha256: str = '') -> Published:
    return Published(
        model=f'vim_{size}_{model}',
        tag='in1k',
        metrics={'top-1': top1},
        license='contradictory',
        doubt='the model card says apache-2.0 in its metadata and "Non-commercial license" in its text',
        origin_url=_VIM,
        repo=f'hustvl/Vim-{size}-midclstok',
        revision=revision,
        filename=f'vim_{file}acc.pth',
        sha256=sha256,
        size=megabytes * 10**6,
        container='model',
        contents='; it also holds a moving average, and which of them was reported is not stated',
    )


_VIM_TINY, _VIM_SMALL = '07c00e0e4ea2973d8e343afdd807128a57bc9fd5', 'babc4440f5fab6e08d97e371afa639c8cf98bf2c'
VIM = Family(
    key='vim',
    title='Vision Mamba (Vim)',
    paper='Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model',
    arxiv='2401.09417',
    venue='ICML 2024',
    repository=_VIM,
    commit='dd0358ad1e42701f22afbefa0717cc8825cf9f45',
    license='apache-2.0',
    models={
        'vim_tiny_patch16_224': Model(7_148_008, 1_823_079_936, '7', '1.5', _UNKNOWN.format('1.29')),
        'vim_small_patch16_224': Model(25_796_584, 5_911_968_768, '26', '5.1', _UNKNOWN.format('4.85')),
        'vim_base_patch16_224': Model(97_598_440, 20_887_173_120, '98'),
        'vim_tiny_patch16_stride8_224': Model(7_250_344, 6_754_856_448),
        'vim_small_patch16_stride8_224': Model(26_001_256, 21_905_857_536),
        'vim_nano': Model(477_544, 90_213_120),
        'test_vim': Model(279_784, 12_681_728),
    },
    files=(
        _vim(
            'tiny',
            'patch16_224',
            _VIM_TINY,
            't_midclstok_76p1',
            76.1,
            115,
            'fedb1e60267f3bc7b2a8443f2ddead8d39e019d10247a87252162b3789801fd5',
        ),
        _vim(
            'small',
            'patch16_224',
            _VIM_SMALL,
            's_midclstok_80p5',
            80.5,
            413,
            'aae4583e2def6389b66cfaf292cfade47a873182a39adbec19ec55b730ea9fe3',
        ),
        _vim('base', 'patch16_224', '', 'b_midclstok_81p9', 81.9, 1562),
        _vim(
            'tiny',
            'patch16_stride8_224',
            _VIM_TINY,
            't_midclstok_ft_78p3',
            78.3,
            117,
            '9847490c5c3ca36cc38caf8be537b726f326a1b5b15764b0bde650934ac35b54',
        ),
        _vim('small', 'patch16_stride8_224', _VIM_SMALL, 's_midclstok_ft_81p6', 81.6, 417),
    ),
    unpublished=_unpublished(
        ('vim_tiny_patch16_224.cascade_mask_rcnn_100e_coco', 45.7, 39.2),
        ('vim_tiny_patch16_224.upernet_160k_ade20k', 41.0),
        ('vim_small_patch16_224.upernet_160k_ade20k', 44.9),
    ),
)

# MSVMamba

_MSVMAMBA = 'https://github.com/YuHengsss/MSVMamba'
_DRIVE = 'https://drive.google.com/drive/folders'


def _msvmamba(model: str, folder: str, top1: float) -> Published:
    return Published(
        model=f'msvmamba_{model}',
        tag='in1k',
        metrics={'top-1': top1},
        license='unknown',
        doubt='neither the repository nor the folder states a licence',
        origin_url=_MSVMAMBA,
        page=f'{_DRIVE}/{folder}',
        container='model',
    )


def _msvmambav3(model: str, top1: float) -> Published:
    return Published(
        model=f'msvmambav3_{model}',
        tag='in1k',
        metrics={'top-1': top1},
        license='contradictory',
        doubt='the Hub repository says mit, the repository of the code states no licence',
        origin_url=_MSVMAMBA,
        repo='YuhengSSS/MSVMamba',
        filename=f'msvmambav3_{model}_224.pth',
        container='model_ema',
        contents=", the moving average (EMA), as upstream's loader does",
    )


def _msvmamba_dense(model: str, method: str, dataset: str, folder: str, *values: float) -> Published:
    return Published(
        model=f'msvmamba_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='unknown',
        doubt='the repository states no licence',
        origin_url=_MSVMAMBA,
        page=f'{_DRIVE}/{folder}',
        container='state_dict',
    )


MSVMAMBA = Family(
    key='msvmamba',
    title='MSVMamba',
    paper='Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model',
    arxiv='2405.14174',
    venue='NeurIPS 2024',
    repository=_MSVMAMBA,
    commit='c39401918e94f11eb29e4932b901b3fd139f1377',
    branches={'v2': 'fca4a391bff29d0e25fe8e6e54496389bb575935'},
    license='unknown',
    models={
        'msvmamba_nano': Model(6_864_136, 850_266_240, '7', '0.9'),
        'msvmamba_micro': Model(11_879_272, 1_484_462_592, '12', '1.5'),
        'msvmamba_tiny': Model(
            33_046_312, 4_502_044_416, '33', '4.6', f'{_NORMS}, and 4 for each value of an upsampled map'
        ),
        'msvmambav3_tiny': Model(32_263_720, 5_069_774_208, '32', '5.0', 'the repository says 5.0, the paper 5.1'),
        'msvmambav3_small': Model(
            50_216_296, 8_668_128_000, '50', '8.8', f'{_NORMS}, which makes 8.71; the rest is not explained'
        ),
        'msvmambav3_base': Model(90_591_976, 16_125_729_792, '91', '16.3', f'{_NORMS}, which makes 16.19'),
        'test_msvmamba': Model(523_304, 11_095_808),
        'test_msvmambav3': Model(562_264, 13_046_208, container='model_ema'),
    },
    files=(
        _msvmamba('nano', '1J41w3ApitQhp2O3wHmJoOs4U032uqebK', 77.3),
        _msvmamba('micro', '1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk', 79.8),
        _msvmamba('tiny', '1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU', 82.8),
        _msvmambav3('tiny', 83.0),
        _msvmambav3('small', 84.1),
        _msvmambav3('base', 84.4),
        _msvmamba_dense('micro', _MASK, 'coco', '12CrNAGBalU0yoQcQgPTGO5lM397Jc4La', 43.8, 39.9),
        _msvmamba_dense('tiny', _MASK, 'coco', '1MogQ6PGdrgsyJckJTL9BJzlMCodJ3epu', 46.9, 42.2),
        _msvmamba_dense('micro', _MASK3, 'coco', '10-8cDnRfnk_j4QxMHkhUyecucnM_82pt', 46.3, 41.8),
        _msvmamba_dense('tiny', _MASK3, 'coco', '1dK1qFjaU8GmqvsmMr1mgppNJlNacHPtG', 48.3, 43.2),
        _msvmamba_dense('micro', _UPER, 'ade20k', '1naZHL4mwTchllAE001SsyZ_z4y_JRF0s', 45.1, 45.4),
        _msvmamba_dense('tiny', _UPER, 'ade20k', '1FaFPFExDd_4goIlLjTR7fXsuMRr-vYoY', 47.8),
    ),
    unpublished=_unpublished(
        ('msvmambav3_tiny.mask_rcnn_1x_coco', 46.9, 42.5),
        ('msvmambav3_small.mask_rcnn_1x_coco', 48.1, 43.2),
        ('msvmambav3_tiny.mask_rcnn_3x_coco', 48.7, 43.4),
        ('msvmambav3_small.mask_rcnn_3x_coco', 49.7, 44.2),
        ('msvmambav3_tiny.upernet_160k_ade20k', 47.9, 48.5),
    ),
)

# VSSD

_VSSD = 'https://github.com/YuHengsss/VSSD'
_VSSD_COST = f'{_UNCOUNTED}; ours has {{}} G in the sums over tokens and in reading them'
# the configuration of small says 40.01 M and 7.37 G, which is that; base only agrees
_VSSD_BLOCK = 'theirs fits a model with one block less in stage 1, of which ours is {}'
_VSSD_DOUBT = 'the repository of the code states no licence'


def _vssd(model: str, file: str, top1: float, tag: str = 'in1k') -> Published:
    return Published(
        model=f'vssd_{model}',
        tag=tag,
        metrics={'top-1': top1},
        license='unknown',
        doubt=_VSSD_DOUBT,
        origin_url=_VSSD,
        repo='YuhengSSS/VSSD',
        filename=f'vssd_{model}_{file}.pth',
        container='model',
        contents=', trained with MESA' if tag == 'mesa_in1k' else '',
    )


def _vssd_dense(model: str, method: str, dataset: str, file: str, *values: float, **facts: Any) -> Published:
    return Published(
        model=f'vssd_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='unknown',
        doubt=_VSSD_DOUBT,
        origin_url=_VSSD,
        repo='YuhengSSS/VSSD',
        filename=f'{file}.pth',
        container='state_dict',
        **facts,
    )


VSSD = Family(
    key='vssd',
    title='VSSD',
    paper='VSSD: Vision Mamba with Non-Causal State Space Duality',
    arxiv='2407.18559',
    venue='ICCV 2025',
    repository=_VSSD,
    commit='87b753b356dd0cd176a6356fdb82fa536d8435eb',
    license='unknown',
    models={
        'vssd_micro': Model(13_512_964, 2_387_381_760, '14', '2.3', _VSSD_COST.format('0.14')),
        'vssd_tiny': Model(24_270_724, 4_663_769_088, '24', '4.5', _VSSD_COST.format('0.31')),
        'vssd_small': Model(40_075_650, 7_708_875_264, '40', '7.4', _VSSD_BLOCK.format('7.44')),
        'vssd_base': Model(88_823_151, 16_648_788_480, '89', '16.1', _VSSD_BLOCK.format('16.11')),
        'test_vssd': Model(521_905, 21_939_968, container='model'),
    },
    files=(
        _vssd('micro', 'best', 82.5),
        _vssd('tiny', 'best_ema', 83.6),
        _vssd('small', 'best_ema', 84.1),
        _vssd('base', 'best_ema', 84.7),
        _vssd('tiny', 'e300_with_mesa', 84.1, 'mesa_in1k'),
        _vssd('small', 'e300_with_mesa', 84.5, 'mesa_in1k'),
        _vssd('base', 'e300_with_mesa', 85.4, 'mesa_in1k'),
        _vssd_dense('micro', _MASK, 'coco', 'mask_rcnn_vssd_fpn_coco_micro', 45.4, 41.3),
        _vssd_dense('tiny', _MASK, 'coco', 'mask_rcnn_vssd_fpn_coco_tiny', 46.9, 42.6),
        _vssd_dense('small', _MASK, 'coco', 'mask_rcnn_vssd_fpn_coco_small', 48.4, 43.5),
        _vssd_dense('micro', _MASK3, 'coco', 'mask_rcnn_vssd_fpn_coco_micro_3x', 47.7, 42.8),
        _vssd_dense('tiny', _MASK3, 'coco', 'mask_rcnn_vssd_fpn_coco_tiny_3x', 48.8, 43.6),
        _vssd_dense(
            'small',
            _MASK3,
            'coco',
            'mask_rcnn_vssd_fpn_coco_small_3x',
            50.0,
            44.6,
            notes=('named as the other files are: the repository links the one of 1x here',),
        ),
        _vssd_dense('micro', _UPER, 'ade20k', 'upernet_vssd_final_4xb4-160k_ade20k-512x512_micro', 45.6, 46.0),
        _vssd_dense('tiny', _UPER, 'ade20k', 'upernet_vssd_4xb4-160k_ade20k-512x512_tiny', 47.9, 48.7),
    ),
)

# GroupMamba

_GROUPMAMBA = 'https://github.com/Amshaker/GroupMamba'
_GROUPMAMBA_DOUBT = (
    'the repository and the metadata of the model card say mit, the text of the card "Non-commercial license"'
)


def _groupmamba(model: str, drive: str, top1: float, **place: Any) -> Published:
    return Published(
        model=f'groupmamba_{model}',
        tag='dist_in1k',
        metrics={'top-1': top1},
        license='contradictory',
        doubt=_GROUPMAMBA_DOUBT,
        origin_url=_GROUPMAMBA,
        page=f'https://drive.google.com/file/d/{drive}',
        contents=', the moving average (EMA)',
        **place,
    )


GROUPMAMBA = Family(
    key='groupmamba',
    title='GroupMamba',
    paper='GroupMamba: Efficient Group-Based Visual State Space Model',
    arxiv='2407.13772',
    venue='CVPR 2025',
    repository=_GROUPMAMBA,
    commit='c1800ed262e995de3c645348e7e0202e8385f334',
    license='mit',
    models={
        'groupmamba_tiny': Model(
            23_361_917, 4_665_958_008, '23', '4.5', 'theirs is at second hand; the released configuration has ours'
        ),
        'groupmamba_small': Model(
            34_781_555,
            7_228_916_096,
            '34',
            '7.0',
            'parameters without the distillation head: 34.3; GFLOPs at second hand, the released have ours',
        ),
        'groupmamba_base': Model(57_150_838, 14_103_612_608, '57', '14'),
        'groupmamba_nano': Model(1_861_620, 297_644_544),
        'test_groupmamba': Model(574_981, 15_839_456),
    },
    files=(
        _groupmamba(
            'tiny',
            '1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o',
            83.3,
            repo='Abdelrahman-shaker/GroupMamba-Tiny',
            revision='b57ab880d5ad8d6bd137cc5a91048d10fec4f163',
            filename='groupmamba_tiny_ema.pth',
            sha256='4c8e15f20d476ddd9080efa845be36e6f1e076721e087e88ebd276463e279425',
            size=93_900_000,
        ),
        _groupmamba(
            'small',
            '1vTN9ynDcsDuOVrcT9GcQ5nBSk-hXySlh',
            83.9,
            repo='Abdelrahman-shaker/GroupMamba-Small',
            filename='groupmamba_small_ema.pth',
            size=140_000_000,
        ),
        # its Hub repository holds a card and no file
        _groupmamba('base', '1A_srBeDYpsinU5W3PAEADu1saoz413EU', 84.5),
    ),
    unpublished=_unpublished(
        ('groupmamba_tiny.mask_rcnn_1x_coco', 47.6, 42.9),
        ('groupmamba_tiny.upernet_160k_ade20k', 48.6, 49.2),
    ),
)

# PlainMamba

_PLAINMAMBA = 'https://github.com/ChenhongyiYang/PlainMamba'


def _plainmamba(model: str, file: str, **facts: Any) -> Published:
    return Published(
        model=f'plainmamba_{model}',
        license='apache-2.0',
        origin_url=_PLAINMAMBA,
        repo='ChenhongyiYang/PlainMamba',
        filename=f'{file}.pth',
        container='state_dict',
        **facts,
    )


def _plainmamba_classifier(model: str, top1: float, size: int, averaged: bool = True) -> Published:
    return _plainmamba(
        model,
        model,
        tag='in1k',
        metrics={'top-1': top1},
        size=size,
        contents=(
            ", into which upstream's trainer swaps the moving average (EMA)"
            if averaged
            else '; trained without a moving average'
        ),
    )


def _plainmamba_dense(model: str, method: str, dataset: str, file: str, *values: float, sha256: str = '') -> Published:
    return _plainmamba(
        model,
        file,
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        sha256=sha256,
        notes=('the backbone is inside a ViT-Adapter',) if dataset == 'coco' else (),
    )


PLAINMAMBA = Family(
    key='plainmamba',
    title='PlainMamba',
    paper='PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition',
    arxiv='2403.17695',
    venue='BMVC 2024',
    repository=_PLAINMAMBA,
    commit='0975a1d0d8bca50e7b85cf15e53de2a383ae12a0',
    license='apache-2.0',
    models={
        'plainmamba_l1': Model(7_551_656, 3_020_122_368, '7.3', '3.0', _NO_HEAD),
        'plainmamba_l2': Model(26_145_832, 8_089_156_608, '25.7', '8.1', _NO_HEAD),
        'plainmamba_l3': Model(50_956_456, 14_458_260_992, '50.5', '14.4'),
        'plainmamba_nano': Model(1_021_160, 875_491_584),
        'test_plainmamba': Model(532_584, 132_076_288),
    },
    files=(
        _plainmamba_classifier('l1', 77.9, 30_300_000, averaged=False),
        _plainmamba_classifier('l2', 81.6, 105_000_000),
        _plainmamba_classifier('l3', 82.3, 204_000_000),
        _plainmamba_dense('l1', _MASK, 'coco', 'detection/maskrcnn/l1_1x', 44.1, 39.1),
        _plainmamba_dense('l2', _MASK, 'coco', 'detection/maskrcnn/l2_1x', 46.0, 40.6),
        _plainmamba_dense('l3', _MASK, 'coco', 'detection/maskrcnn/l3_1x', 46.8, 41.2),
        _plainmamba_dense('l1', 'retinanet_1x', 'coco', 'detection/retinanet/l1_1x', 41.7),
        _plainmamba_dense('l2', 'retinanet_1x', 'coco', 'detection/retinanet/l2_1x', 43.9),
        _plainmamba_dense('l3', 'retinanet_1x', 'coco', 'detection/retinanet/l3_1x', 44.8),
        _plainmamba_dense('l1', _UPER, 'ade20k', 'segmentation/l1_upernet', 44.1),
        _plainmamba_dense(
            'l2',
            _UPER,
            'ade20k',
            'segmentation/l2_upernet',
            46.8,
            sha256='aba713e1627ea4b7c7fa94640bd532528c0fbd5fdc442b8cfb4bf59e00299bce',
        ),
        _plainmamba_dense('l3', _UPER, 'ade20k', 'segmentation/l3_upernet', 49.1),
    ),
)

# LBVim

_LBMAMBA = 'https://github.com/cvlab-stonybrook/LBMamba'


def _lbvim(model: str) -> Published:
    return Published(
        model=f'lbvim_{model}_patch16_224',
        tag='in1k',
        license='unknown',
        doubt='the repository states no licence',
        origin_url=_LBMAMBA,
        page=f'{_LBMAMBA}/releases/tag/v1.0',
        container='model',
        notes=('file names and top-1 per variant are not known',),
    )


LBVIM = Family(
    key='lbvim',
    title='LBVim (LBMamba)',
    paper='LBMamba: Locally Bi-directional Mamba',
    arxiv='2506.15976',
    venue='arXiv 2025',
    repository=_LBMAMBA,
    commit='521555165f879530407ac007f7f1fc885dcd20a3',
    license='unknown',
    models={
        'lbvim_tiny_patch16_224': Model(6_419_560, 1_441_758_720),
        'lbvim_300_patch16_224': Model(14_897_200, 3_206_719_200),
        'lbvim_small_patch16_224': Model(23_897_320, 5_051_120_640),
        'lbvim_528_patch16_224': Model(44_823_448, 9_290_121_984),
        'lbvim_nano': Model(599_272, 123_392_256),
        'test_lbvim': Model(698_600, 25_134_080),
    },
    files=(_lbvim('tiny'), _lbvim('300'), _lbvim('small'), _lbvim('528')),
)

# Mamba-Reg

_MAMBAREG = 'https://github.com/wangf3014/Mamba-Reg'


def _mambareg(size: str, top1: float) -> Published:
    return Published(
        model=f'mambareg_{size}_patch16_224',
        tag='in1k',
        metrics={'top-1': top1},
        license='unknown',
        doubt='neither the repository nor the Hub repository is known to state a licence',
        origin_url=_MAMBAREG,
        repo='Wangf3014/Mamba-Reg',
        filename=f'mambar_{size}_patch16_224.pth',
        container='model',
    )


MAMBAREG = Family(
    key='mambareg',
    title='Mamba-Reg',
    paper='Mamba-R: Vision Mamba Also Needs Registers',
    arxiv='2405.14858',
    venue='CVPR 2025',
    repository=_MAMBAREG,
    commit='0f7c2da9d8f3b03243a6242a0690bd72b54aa2c1',
    license='unknown',
    models={
        'mambareg_tiny_patch16_224': Model(9_264_232, 1_925_351_424, container='model'),
        'mambareg_small_patch16_224': Model(27_801_064, 6_241_609_728),
        'mambareg_base_patch16_224': Model(99_301_096, 22_050_220_032),
        'mambareg_large_patch16_224': Model(341_222_376, 77_103_579_136, '341'),
        'test_mambareg': Model(346_344, 13_632_512),
    },
    files=(_mambareg('small', 81.4), _mambareg('base', 83.0), _mambareg('large', 83.6)),
)

# VideoMamba

_VIDEOMAMBA = 'https://github.com/OpenGVLab/VideoMamba'
_SIDES = {224: '224', 448: '224to448', 576: '224to448to576'}  # as file names have it


def _videomamba(size: str, side: int, top1: float) -> Published:
    distilled = ('trained with self-distillation: features aligned with those of VideoMamba-S',)
    return Published(
        model=f'videomamba_{size}_patch16_{side}',
        tag='in1k',
        metrics={'top-1': top1},
        license='apache-2.0',
        origin_url=_VIDEOMAMBA,
        repo='OpenGVLab/VideoMamba',
        filename=f'videomamba_{size[0]}16_in1k_res{_SIDES[side]}.pth',
        container='model',
        notes=distilled if size in ('middle', 'base') else (),
    )


VIDEOMAMBA = Family(
    key='videomamba',
    title='VideoMamba (images)',
    paper='VideoMamba: State Space Model for Efficient Video Understanding',
    arxiv='2403.06977',
    venue='ECCV 2024',
    repository=_VIDEOMAMBA,
    commit='f3427e42cb8453a523aec3a6f86d57b5bc1de5c3',
    license='apache-2.0',
    models={
        'videomamba_tiny_patch16_224': Model(7_148_008, 1_823_079_936, '7', '1.1', _PROJECTIONS.format('1.07')),
        'videomamba_small_patch16_224': Model(25_796_584, 5_911_968_768, '26', '4.3', _PROJECTIONS.format('4.24')),
        'videomamba_middle_patch16_224': Model(74_217_448, 16_326_461_952, '74', '12.7', _PROJECTIONS.format('12.64')),
        'videomamba_base_patch16_224': Model(97_598_440, 20_887_173_120, '98', '16.9', _PROJECTIONS.format('16.85')),
        'videomamba_tiny_patch16_448': Model(7_260_904, 7_263_763_968, '7', '4.3', _PROJECTIONS.format('4.28')),
        'videomamba_small_patch16_448': Model(26_022_376, 23_556_258_816, '26', '16.9', _PROJECTIONS.format('16.90')),
        'videomamba_middle_patch16_448': Model(74_556_136, 65_054_181_888, '74', '50.4', _PROJECTIONS.format('50.35')),
        'videomamba_tiny_patch16_576': Model(7_359_208, 12_001_230_336, '7', '7.1', _PROJECTIONS.format('7.08')),
        'videomamba_small_patch16_576': Model(26_218_984, 38_919_994_368, '26', '28.0', _PROJECTIONS.format('27.92')),
        'videomamba_middle_patch16_576': Model(74_851_048, 107_483_761_152, '74', '83.1', _PROJECTIONS.format('83.19')),
        'test_videomamba': Model(279_784, 12_681_728),
    },
    files=(
        _videomamba('tiny', 224, 76.9),
        _videomamba('small', 224, 81.2),
        _videomamba('middle', 224, 82.8),
        _videomamba('base', 224, 82.7),
        _videomamba('tiny', 448, 79.3),
        _videomamba('small', 448, 83.2),
        _videomamba('middle', 448, 83.8),
        _videomamba('tiny', 576, 79.6),
        _videomamba('small', 576, 83.5),
        _videomamba('middle', 576, 84.0),
    ),
)

# ShuffleMamba

SHUFFLEMAMBA = Family(
    key='shufflemamba',
    title='ShuffleMamba',
    paper='Stochastic Layer-Wise Shuffle for Improving Vision Mamba Training',
    arxiv='2408.17081',
    venue='ICML 2025',
    repository='https://github.com/huangzizheng01/ShuffleMamba',
    commit='0df405f5aa1d39a4a0be21da165935e30a12688b',
    license='unknown',
    models={
        'shufflemamba_tiny_patch16_224': Model(7_148_008, 1_823_079_936, container='model'),
        'shufflemamba_middle_patch16_224': Model(74_236_456, 16_326_461_952, container='model'),
        'test_shufflemamba': Model(280_104, 12_681_728),
    },
)

# A2Mamba

_A2MAMBA = 'https://github.com/LMMMEng/A2Mamba'


def _a2mamba(size: str, top1: float) -> Published:
    return Published(
        model=f'a2mamba_{size}',
        tag='in1k',
        metrics={'top-1': top1},
        license='unknown',
        doubt='neither the repository nor the Hub repository is known to state a licence',
        origin_url=_A2MAMBA,
        repo='LMMM2025/A2Mamba',
        filename=f'a2mamba_pretrained_weights/a2mamba_{size}.pth',
        container='state_dict',
        contents=', or all of it',
    )


A2MAMBA = Family(
    key='a2mamba',
    title='A2Mamba',
    paper='A2Mamba: Attention-augmented State Space Models for Visual Recognition',
    arxiv='2507.16624',
    venue='arXiv 2025',
    repository=_A2MAMBA,
    commit='a9ea14c6ab11d3cfd5cbc600651d710397a707ad',
    license='unknown',
    models={
        'a2mamba_nano': Model(4_195_052, 811_253_504, '4', '0.8'),
        'a2mamba_tiny': Model(15_365_506, 2_686_982_912, '15', '2.7'),
        'a2mamba_small': Model(30_672_834, 5_347_628_032, '31', '5.4'),
        'a2mamba_base': Model(
            51_134_464, 11_372_799_744, '51', '10.7', 'not explained: the same count agrees for the four other sizes'
        ),
        'a2mamba_large': Model(93_737_376, 17_333_410_624, '95', '17.4', 'the released configuration has 93.7 M'),
        'test_a2mamba': Model(301_904, 13_217_600),
    },
    files=(
        _a2mamba('nano', 78.7),
        _a2mamba('tiny', 83.0),
        _a2mamba('small', 84.7),
        _a2mamba('base', 85.7),
        _a2mamba('large', 86.1),
    ),
)

# MobileMamba

_MOBILEMAMBA = 'https://github.com/lewandofskee/MobileMamba'

_MOBILEMAMBA_ALL = '1EDqWI6JKMaLZRSRWt9aM7VXaNvosStGE'  # all files in one


def _mobilemamba(model: str, top1: float, file: str = _MOBILEMAMBA_ALL, tag: str = 'in1k', *notes: str) -> Published:
    return Published(
        model=f'mobilemamba_{model}',
        tag=tag,
        metrics={'top-1': top1},
        license='mit',
        origin_url=_MOBILEMAMBA,
        page=f'https://drive.google.com/file/d/{file}',
        notes=(*(('trained for 1000 epochs, with soft distillation from TResNet-L',) if tag != 'in1k' else ()), *notes),
    )


MOBILEMAMBA = Family(
    key='mobilemamba',
    title='MobileMamba',
    paper='MobileMamba: Lightweight Multi-Receptive Visual Mamba Network',
    arxiv='2411.15941',
    venue='CVPR 2025',
    repository=_MOBILEMAMBA,
    commit='0980f48a23d232e0f2e86e740eccab038c8fd760',
    license='mit',
    models={
        'mobilemamba_t2': Model(8_806_682, 252_770_044, '8.8', '0.255'),
        'mobilemamba_t4': Model(14_137_690, 410_065_748, '14.2', '0.413'),
        'mobilemamba_s6': Model(14_996_696, 648_759_384, '15.0', '0.652'),
        'mobilemamba_b1': Model(17_070_625, 1_074_351_872, '17.1', '1.080'),
        'mobilemamba_b2': Model(17_070_625, 2_414_917_952, '17.1', '2.427'),
        'mobilemamba_b4': Model(17_070_625, 4_291_710_464, '17.1', '4.313'),
        'test_mobilemamba': Model(438_743, 6_979_488),
    },
    files=(
        _mobilemamba(
            't2',
            71.5,
            '1LXh5wjVEUu5Kj1foclC9zmlKsy7JpMQ-',
            'in1k',
            'the repository says 71.5 and, under testing, 73.638',
        ),
        _mobilemamba('t2', 76.9, '14UUeEeN62a1jo5qit-m0yChQnNU8JWQG', 'dist_in1k'),
        _mobilemamba('t4', 76.1),
        _mobilemamba('t4', 78.9, tag='dist_in1k'),
        _mobilemamba('s6', 78.0),
        _mobilemamba('s6', 80.7, tag='dist_in1k'),
        _mobilemamba('b1', 79.9, '1ODO1XM2luMfczbDLJxHrEl-ie7yUscAC'),
        _mobilemamba('b1', 82.2, '15rBhYky_f7jNSknXujuwQESaIkiTBAR1', 'dist_in1k'),
        _mobilemamba('b2', 81.6),
        _mobilemamba('b2', 83.3, tag='dist_in1k'),
        _mobilemamba('b4', 82.5),
        _mobilemamba('b4', 83.6, tag='dist_in1k'),
    ),
    unpublished=_unpublished(
        ('mobilemamba_b1.mask_rcnn_1x_coco', 40.6, 37.4),
        ('mobilemamba_b1.retinanet_1x_coco', 39.6),
        ('mobilemamba_b4.fpn_160k_ade20k', 42.5),
        ('mobilemamba_b4.deeplabv3_80k_ade20k', 36.6),
        ('mobilemamba_b4.pspnet_80k_ade20k', 36.9),
    ),
)

# VCMamba

_VCMAMBA = 'https://github.com/Wertyuui345/VCMamba'


def _vcmamba(size: str, top1: float) -> Published:
    return Published(
        model=f'vcmamba_{size}',
        tag='dist_in1k',
        metrics={'top-1': top1},
        license='contradictory',
        doubt='the Hub repository says apache-2.0, the repository of the code states no licence',
        origin_url=_VCMAMBA,
        repo='SLDGroup/VCMamba',
        filename=f'VCMamba-{size.upper()}.pth',
        container='model',
    )


VCMAMBA = Family(
    key='vcmamba',
    title='VCMamba',
    paper='VCMamba: Bridging Convolutions with Multi-Directional Mamba for Efficient Visual Representation',
    arxiv='2509.04669',
    venue='ICCV 2025 workshop',
    repository=_VCMAMBA,
    commit='f8795a002b29f370d527b82479f70640b06ff3cb',
    license='unknown',
    models={
        'vcmamba_s': Model(10_478_720, 1_106_894_080, '10.5', '1.1'),
        'vcmamba_m': Model(21_072_176, 2_374_321_152, '21.0', '2.3', _UNCOUNTED),
        'vcmamba_b': Model(31_450_832, 4_064_276_480, '31.5', '4.0', _UNCOUNTED),
        'test_vcmamba': Model(207_176, 5_786_016),
    },
    files=(_vcmamba('s', 78.7), _vcmamba('m', 81.5), _vcmamba('b', 82.6)),
    unpublished=_unpublished(('vcmamba_b.fpn_40k_ade20k', 47.1)),
)

# EfficientVMamba

_EFFICIENTVMAMBA = 'https://github.com/TerryPei/EfficientVMamba'


def _efficientvmamba(size: str, top1: float, megabytes: float) -> Published:
    return Published(
        model=f'efficientvmamba_{size}',
        tag='in1k',
        metrics={'top-1': top1},
        license='apache-2.0',
        origin_url=_EFFICIENTVMAMBA,
        repo=f'TerryPei/EfficientVMamba-{size.capitalize()}',
        filename=f'efficient_vmamba_{size}.ckpt',
        size=round(megabytes * 1e6),
        container='state_dict',
        contents=', or all of it',
    )


EFFICIENTVMAMBA = Family(
    key='efficientvmamba',
    title='EfficientVMamba',
    paper='EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba',
    arxiv='2403.09977',
    venue='AAAI 2025',
    repository=_EFFICIENTVMAMBA,
    commit='0bc5ee288b402d648641f5494b73e9d152e0c62b',
    license='apache-2.0',
    models={
        'efficientvmamba_tiny': Model(6_493_660, 896_398_080, '6', '0.8', _NO_SCAN),
        'efficientvmamba_small': Model(11_273_688, 1_472_167_936, '11', '1.3', _NO_SCAN),
        'efficientvmamba_base': Model(33_717_136, 4_211_715_072, '33', '4.0', _NO_SCAN),
        'test_efficientvmamba': Model(202_326, 12_494_720),
    },
    files=(
        _efficientvmamba('tiny', 76.5, 26.2),
        _efficientvmamba('small', 78.7, 45.3),
        _efficientvmamba('base', 81.8, 135),
    ),
)

# Spatial-Mamba

_SPATIALMAMBA = 'https://github.com/EdwardChasel/Spatial-Mamba'


def _spatialmamba(model: str, top1: float, file: str) -> Published:
    return Published(
        model=f'spatialmamba_{model}',
        tag='in1k',
        metrics={'top-1': top1},
        license='apache-2.0',
        origin_url=_SPATIALMAMBA,
        page=f'https://drive.google.com/file/d/{file}',
        container='model',
    )


_FUSION = 'ours has one 11x11 kernel in place of three of 3x3, with which it is {}'
SPATIALMAMBA = Family(
    key='spatialmamba',
    title='Spatial-Mamba',
    paper='Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion',
    arxiv='2410.15091',
    venue='ICLR 2025',
    repository=_SPATIALMAMBA,
    commit='71221ebfaa5fe797445be0292f0ec7048fe457c1',
    license='apache-2.0',
    models={
        'spatialmamba_tiny': Model(26_748_862, 4_680_026_112, '27', '4.5', _FUSION.format('4.44')),
        'spatialmamba_small': Model(43_074_280, 7_445_827_584, '43', '7.1', _FUSION.format('7.07')),
        'spatialmamba_base': Model(95_745_592, 16_293_918_720, '96', '15.8', _FUSION.format('15.74')),
        'test_spatialmamba': Model(576_015, 25_554_944, container='model'),
    },
    files=(
        _spatialmamba('tiny', 83.5, '19kXoqGSTuKKs4AHbdUSrdKZTwTWenLIW'),
        _spatialmamba('small', 84.6, '1Wb3sYoWLpgmWrmHMYKwdgDwGPZaqM28O'),
        _spatialmamba('base', 85.3, '1k8dHp2QRCOqBSgAi36YkhZp_O8LqOPjM'),
    ),
    unpublished=_unpublished(
        ('spatialmamba_tiny.mask_rcnn_1x_coco', 47.6, 42.9),
        ('spatialmamba_small.mask_rcnn_1x_coco', 49.2, 44.0),
        ('spatialmamba_base.mask_rcnn_1x_coco', 50.4, 45.1),
        ('spatialmamba_tiny.mask_rcnn_3x_coco', 49.3, 43.6),
        ('spatialmamba_small.mask_rcnn_3x_coco', 50.5, 44.6),
        ('spatialmamba_tiny.upernet_160k_ade20k', 48.6, 49.4),
        ('spatialmamba_small.upernet_160k_ade20k', 50.6, 51.4),
        ('spatialmamba_base.upernet_160k_ade20k', 51.8, 52.6),
    ),
)

# LocalVim and LocalVMamba, of LocalMamba

_LOCALMAMBA = 'https://github.com/hunto/LocalMamba'


def _localmamba(model: str, file: str, top1: float) -> Published:
    return Published(
        model=model,
        tag='in1k',
        metrics={'top-1': top1},
        license='apache-2.0',
        origin_url=_LOCALMAMBA,
        url=f'{_LOCALMAMBA}/releases/download/v1.0.0/{file}.ckpt',
        container='state_dict',
    )


_LOCALMAMBA_PAPER = {
    'paper': 'LocalMamba: Visual State Space Model with Windowed Selective Scan',
    'arxiv': '2403.09338',
    'venue': 'ECCV 2024 workshop',
    'repository': _LOCALMAMBA,
    'commit': '75e5d1f007c303509c77d179df38f7fa19c0d05c',
    'license': 'apache-2.0',
}

LOCALVIM = Family(
    key='localvim',
    title='LocalVim',
    **_LOCALMAMBA_PAPER,
    models={
        'localvim_tiny_patch16_224': Model(7_994_152, 2_134_150_656, '8', '1.5', _UNKNOWN.format('1.26')),
        'localvim_tiny_midcls_patch16_224': Model(7_994_536, 2_144_871_936, '8', '1.5', _UNKNOWN.format('1.27')),
        'localvim_small_patch16_224': Model(27_783_784, 6_299_139_072, '28', '4.8', _UNKNOWN.format('4.55'), top1=81.1),
        'test_localvim': Model(165_916, 5_698_176, container='state_dict'),
    },
    files=(
        _localmamba('localvim_tiny_patch16_224', 'local_vim_tiny', 76.2),
        _localmamba('localvim_tiny_midcls_patch16_224', 'local_vim_tiny_middle_cls_token', 77.8),
    ),
)

LOCALVMAMBA = Family(
    key='localvmamba',
    title='LocalVMamba',
    **_LOCALMAMBA_PAPER,
    models={
        'localvmamba_small': Model(49_748_536, 11_210_956_800, '50', '11.4', _NORMS),
        'localvmamba_tiny': Model(25_527_160, 5_625_237_504, '26', '5.7', _NORMS, top1=82.7),
        'test_localvmamba': Model(171_712, 11_483_520, container='state_dict'),
    },
    files=(_localmamba('localvmamba_small', 'local_vssm_small', 83.7),),
)

# MambaOut: timm has the family, and its registry says where the weights are

MAMBAOUT = Family(
    key='mambaout',
    title='MambaOut',
    paper='MambaOut: Do We Really Need Mamba for Vision?',
    arxiv='2405.07992',
    venue='CVPR 2025',
    repository='https://github.com/yuweihao/MambaOut',
    license='apache-2.0',
    borrowed=True,
    models={
        'mambaout_femto': Model(7_304_536, 1_147_984_992, '7.3', '1.2', _NORMS, top1=78.9),
        'mambaout_kobe': Model(9_141_208, 1_505_865_312, '9.1', '1.5', top1=80.0),
        'mambaout_tiny': Model(26_545_096, 4_469_655_744, '26.5', '4.5', top1=82.7),
        'mambaout_small': Model(48_488_072, 8_936_423_616, '48.5', '9.0', top1=84.1),
        'mambaout_base': Model(84_813_092, 15_794_325_760, '84.8', '15.8', top1=84.2),
        'mambaout_small_rw': Model(48_495_560, 8_936_423_616),
        'mambaout_base_short_rw': Model(88_827_688, 16_280_785_216),
        'mambaout_base_tall_rw': Model(86_481_448, 16_116_684_608),
        'mambaout_base_wide_rw': Model(94_448_104, 17_751_798_144),
        'mambaout_base_plus_rw': Model(101_656_552, 19_161_191_808),
        'test_mambaout': Model(447_560, 24_595_584),
    },
    unpublished=_unpublished(
        ('mambaout_tiny.mask_rcnn_1x_coco', 45.1, 41.0),
        ('mambaout_small.mask_rcnn_1x_coco', 47.4, 42.7),
        ('mambaout_base.mask_rcnn_1x_coco', 47.4, 43.0),
        ('mambaout_tiny.upernet_160k_ade20k', 47.4, 48.6),
        ('mambaout_small.upernet_160k_ade20k', 49.5, 50.6),
        ('mambaout_base.upernet_160k_ade20k', 49.6, 51.0),
    ),
)
# MambaVision

_MAMBAVISION = 'https://github.com/NVlabs/MambaVision'
_NVIDIA = 'https://huggingface.co/nvidia'


def _mambavision(model: str, repo: str, file: str, top1: float, tag: str = 'in1k', **facts: Any) -> Published:
    return Published(
        model=f'mambavision_{model}',
        tag=tag,
        metrics={'top-1': top1},
        license='cc-by-nc-sa-4.0',
        origin_url=_MAMBAVISION,
        repo=f'nvidia/MambaVision-{repo}',
        filename=f'mambavision_{file}.pth.tar',
        container='state_dict',
        notes=(
            'licence as the README of the code states it; the metadata of the Hub repository says other (nvclv1)',
            *(('pre-trained on ImageNet-21k',) if tag.startswith('in21k') else ()),
        ),
        **facts,
    )


def _mambavision_dense(model: str, method: str, dataset: str, repo: str, *values: float) -> Published:
    return Published(
        model=f'mambavision_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='cc-by-nc-sa-4.0',
        origin_url=_MAMBAVISION,
        page=f'{_NVIDIA}/{repo}',
        container='state_dict',
    )


_CASCADE3 = 'cascade_mask_rcnn_3x'
_MAMBAVISION_CASCADE = 'cascade_mask_rcnn_mamba_vision_{}_3x_coco'
_MAMBAVISION_UPER = 'mamba_vision_160k_ade20k-{}'
MAMBAVISION = Family(
    key='mambavision',
    title='MambaVision',
    paper='MambaVision: A Hybrid Mamba-Transformer Vision Backbone',
    arxiv='2407.08083',
    venue='CVPR 2025',
    repository=_MAMBAVISION,
    commit='7860a506b2eb844eaaae676f08461ce8c3c26f43',
    license='nvidia-source-code-nc',
    models={
        'mambavision_tiny': Model(31_794_248, 4_575_957_376, '31.8', '4.4', _NO_MIXERS.format('4.46')),
        'mambavision_tiny2': Model(35_104_008, 5_251_263_616, '35.1', '5.1', _NO_MIXERS.format('5.10')),
        'mambavision_small': Model(50_140_584, 7_592_741_760, '50.1', '7.5', _NO_MIXERS.format('7.47')),
        'mambavision_base': Model(97_685_288, 15_186_163_200, '97.7', '15.0', _NO_MIXERS.format('14.94')),
        'mambavision_large': Model(227_961_048, 35_196_126_896, '227.9', '34.9'),
        'mambavision_large2': Model(241_554_824, 37_921_588_432, '241.5', '37.5', _NO_MIXERS.format('37.47')),
        'mambavision_large3': Model(739_570_472, 123_666_317_312, '739.6', '122.3', _NO_MIXERS.format('122.0')),
        'mambavision_nano': Model(2_564_408, 333_631_616),
        'test_mambavision': Model(306_336, 14_573_568, container='state_dict'),
    },
    files=(
        _mambavision('tiny', 'T-1K', 'tiny_1k', 82.3, size=382_000_000),
        _mambavision('tiny2', 'T2-1K', 'tiny2_1k', 82.7),
        _mambavision('small', 'S-1K', 'small_1k', 83.3),
        _mambavision('base', 'B-1K', 'base_1k', 84.2),
        _mambavision('base', 'B-21K', 'base_21k', 84.9, 'in21k_ft_in1k'),
        _mambavision('large', 'L-1K', 'large_1k', 85.0),
        _mambavision('large', 'L-21K', 'large_21k', 86.1, 'in21k_ft_in1k'),
        _mambavision('large2', 'L2-1K', 'large2_1k', 85.3),
        _mambavision('large2', 'L2-512-21K', 'L2_21k_240m_512', 87.3, 'in21k_ft_in1k_512'),
        _mambavision('large3', 'L3-256-21K', 'L3_21k_740m_256', 87.3, 'in21k_ft_in1k_256'),
        _mambavision('large3', 'L3-512-21K', 'L3_21k_740m_512', 88.1, 'in21k_ft_in1k_512'),
        _mambavision_dense('tiny', _CASCADE3, 'coco', _MAMBAVISION_CASCADE.format('tiny'), 51.1, 44.3),
        # its file is in the repository of the tiny one
        _mambavision_dense('small', _CASCADE3, 'coco', _MAMBAVISION_CASCADE.format('tiny'), 52.3, 45.2),
        _mambavision_dense('base', _CASCADE3, 'coco', _MAMBAVISION_CASCADE.format('base'), 52.8, 45.7),
        _mambavision_dense('tiny', _UPER, 'ade20k', _MAMBAVISION_UPER.format('512x512_tiny'), 46.0),
        _mambavision_dense('small', _UPER, 'ade20k', _MAMBAVISION_UPER.format('512x512_small'), 48.2),
        _mambavision_dense('base', _UPER, 'ade20k', _MAMBAVISION_UPER.format('512x512_base'), 49.1),
        _mambavision_dense('large3', _UPER, 'ade20k', _MAMBAVISION_UPER.format('640x640_l3_21k'), 53.2),
    ),
)

FAMILIES = {
    family.key: family
    for family in (
        VMAMBA,
        VIM,
        MSVMAMBA,
        VSSD,
        SPATIALMAMBA,
        GROUPMAMBA,
        PLAINMAMBA,
        LBVIM,
        MAMBAREG,
        VIDEOMAMBA,
        SHUFFLEMAMBA,
        A2MAMBA,
        MAMBAVISION,
        MOBILEMAMBA,
        VCMAMBA,
        EFFICIENTVMAMBA,
        LOCALVIM,
        LOCALVMAMBA,
        MAMBAOUT,
    )
}


def add_family(family: Family) -> None:
    """Make a family that is not of this package known to what lists and describes.

    Raises:
        ValueError: If its key, or the name of a model, is taken.
    """
    taken = [name for name in family.models if any(name in other.models for other in FAMILIES.values())]
    if family.key in FAMILIES or taken:
        raise ValueError(f'{", ".join(taken) or f"the key {family.key!r}"} is taken')
    FAMILIES[family.key] = family


def family_of(model: str) -> Family | None:
    """The family of a registered name, with or without tag; None: it is no model of ours."""
    name = model.partition('.')[0]
    for family in FAMILIES.values():
        if name in family.models:
            return family
    matches = [key for key in FAMILIES if name.removeprefix('test_').startswith(key)]
    return FAMILIES[max(matches, key=len)] if matches else None  # a model that timm has added since


def model_facts(model: str) -> Model | None:
    """Size and cost of a registered name, with or without tag; None: not recorded."""
    name = model.partition('.')[0]
    family = family_of(name)
    return family.models.get(name) if family else None


def published_files(model: str = '', task: str = '') -> Iterator[Published]:
    """The published files, of one model and for one task if these are given."""
    for family in FAMILIES.values():
        for file in family.files:
            if model in ('', file.model) and task in ('', file.task):
                yield file


def find_published(name: str) -> Published | None:
    """The file `model.tag` or `model.method_dataset`; of a bare model, its default classifier; None: there is none."""
    return next((file for file in published_files() if name == file.name or (file.tag and name == file.model)), None)


def reported_metrics(name: str) -> Mapping[str, float]:
    """What the authors report under the name of a file, in percent, published or not; empty: nothing."""
    file, family = find_published(name), family_of(name)
    return file.metrics if file else family.unpublished.get(name, {}) if family else {}


def get_downstream(name: str) -> Published:
    """The published detector or segmenter `model.method_dataset`.

    Raises:
        ValueError: If there is none; the message has the closest names.
    """
    names = {file.name: file for file in published_files() if file.method}
    if name not in names:
        close = ', '.join(difflib.get_close_matches(name, names, 3)) or 'none'
        raise ValueError(f'no published detector or segmenter {name!r}; closest are {close}')
    return names[name]


def container_of(model: str) -> str:
    """The key under which training checkpoints of a model keep what its authors evaluate; '': not known."""
    file = find_published(model.partition('.')[0])
    facts = model_facts(model)
    return file.container if file else facts.container if facts else ''
