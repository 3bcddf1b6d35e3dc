"""Detectors and segmenters that the authors of the families published, for OpenMMLab configs and `visionssm weights`.

Sources: VMamba's README.md and assets/performance.md, MSVMamba's README.md, PlainMamba's README.md. No other family
published any.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

_VMAMBA = 'https://github.com/MzeroMiko/VMamba'
_DRIVE = 'https://drive.google.com/drive/folders'


@dataclass(frozen=True)
class Downstream:
    """One published file; what it holds is a whole detector or segmenter, whose backbone is under `backbone.`.

    Args:
        model: Registered name of the backbone.
        method: Detector or segmenter with its schedule, such as 'mask_rcnn_1x'.
        dataset: 'coco' (2017) or 'ade20k'.
        metrics: What the authors report, in percent: 'box AP' and 'mask AP', or 'mIoU' and 'mIoU (multi-scale)'.
        license: Of the file, as a tag states it.
        origin_url: Repository.
        hf_hub_id: Hub repository with the file, if it is on the Hub.
        hf_hub_filename: Path in it.
        url: Address of the file, if it is elsewhere.
        notes: What else is known; where to get a file that has neither.
    """

    model: str
    method: str
    dataset: str
    metrics: Mapping[str, float]
    license: str
    origin_url: str
    hf_hub_id: str | None = None
    hf_hub_filename: str | None = None
    url: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`model.method_dataset`, as `visionssm weights` shows it."""
        return f'{self.model}.{self.method}_{self.dataset}'


def get_downstream(name: str) -> Downstream:
    """The published file `name`.

    Raises:
        ValueError: If there is none; the message has the closest names.
    """
    if name not in DOWNSTREAM:
        close = ', '.join(difflib.get_close_matches(name, DOWNSTREAM, 3)) or 'none'
        raise ValueError(f'no published detector or segmenter {name!r}; closest are {close}')
    return DOWNSTREAM[name]


def _metrics(dataset: str, values: tuple[float, ...]) -> dict[str, float]:
    names = ('box AP', 'mask AP') if dataset == 'coco' else ('mIoU', 'mIoU (multi-scale)')
    return dict(zip(names, values, strict=False))


def _vmamba(model: str, method: str, dataset: str, file: str, *values: float) -> Downstream:
    return Downstream(
        model=f'vmamba_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='mit',
        origin_url=_VMAMBA,
        url=f'{_VMAMBA}/releases/download/%23{file}.pth',
    )


def _msvmamba(model: str, method: str, dataset: str, folder: str, *values: float) -> Downstream:
    return Downstream(
        model=f'msvmamba_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='unknown',
        origin_url='https://github.com/YuHengsss/MSVMamba',
        notes=(f'to download by hand: {_DRIVE}/{folder}', 'the repository states no licence'),
    )


def _plainmamba(model: str, method: str, dataset: str, file: str, *values: float) -> Downstream:
    adapter = ('the backbone is inside a ViT-Adapter',) if dataset == 'coco' else ()
    return Downstream(
        model=f'plainmamba_{model}',
        method=method,
        dataset=dataset,
        metrics=_metrics(dataset, values),
        license='apache-2.0',
        origin_url='https://github.com/ChenhongyiYang/PlainMamba',
        hf_hub_id='ChenhongyiYang/PlainMamba',
        hf_hub_filename=f'{file}.pth',
        notes=adapter,
    )


_MASK, _MASK3, _UPER = 'mask_rcnn_1x', 'mask_rcnn_3x', 'upernet_160k'
_PUBLISHED = (
    _vmamba('vanilla_tiny', _MASK, 'coco', 'v0det/vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12', 46.5, 42.1),
    _vmamba('vanilla_small', _MASK, 'coco', 'v0det/vssmsmall_mask_rcnn_swin_fpn_coco_epoch_12', 48.2, 43.0),
    _vmamba('vanilla_base', _MASK, 'coco', 'v0det/vssmbase_mask_rcnn_swin_fpn_coco_epoch_12', 48.6, 43.3),
    _vmamba('tiny_s2l5', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_epoch_12', 47.4, 42.7),
    _vmamba('small_s2l15', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_small_epoch_11', 48.7, 43.7),
    _vmamba('base_s2l15', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_base_epoch_11', 49.2, 44.1),
    _vmamba('base_s2l15', f'{_MASK}_bs8', 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_base_epoch_12_bs8', 49.2, 43.9),
    _vmamba('tiny_s1l8', _MASK, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12', 47.3, 42.7),
    _vmamba('vanilla_tiny', _MASK3, 'coco', 'v0det/vssmtiny_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34', 48.5, 43.2),
    _vmamba('vanilla_small', _MASK3, 'coco', 'v0det/vssmsmall_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34', 49.7, 44.0),
    _vmamba('tiny_s2l5', _MASK3, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_epoch_36', 48.9, 43.7),
    _vmamba('small_s2l15', _MASK3, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_small_ms_3x_epoch_32', 49.9, 44.2),
    _vmamba('tiny_s1l8', _MASK3, 'coco', 'v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_s_epoch_31', 48.8, 43.7),
    _vmamba('vanilla_tiny', _UPER, 'ade20k', 'v0seg/vssmtiny_upernet_4xb4-160k_ade20k-512x512_iter_160000', 47.3, 48.3),
    _vmamba(
        'vanilla_small', _UPER, 'ade20k', 'v0seg/vssmsmall_upernet_4xb4-160k_ade20k-512x512_iter_160000', 49.5, 50.5
    ),
    _vmamba('vanilla_base', _UPER, 'ade20k', 'v0seg/vssmbase_upernet_4xb4-160k_ade20k-512x512_iter_128000', 50.0, 51.3),
    _vmamba('tiny_s2l5', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_iter_160000', 48.3, 48.6),
    _vmamba(
        'small_s2l15', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_small_iter_144000', 50.6, 51.2
    ),
    _vmamba('base_s2l15', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000', 51.0, 51.6),
    _vmamba('tiny_s1l8', _UPER, 'ade20k', 'v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000', 47.9, 48.8),
    _msvmamba('micro', _MASK, 'coco', '12CrNAGBalU0yoQcQgPTGO5lM397Jc4La', 43.8, 39.9),
    _msvmamba('tiny', _MASK, 'coco', '1MogQ6PGdrgsyJckJTL9BJzlMCodJ3epu', 46.9, 42.2),
    _msvmamba('micro', _MASK3, 'coco', '10-8cDnRfnk_j4QxMHkhUyecucnM_82pt', 46.3, 41.8),
    _msvmamba('tiny', _MASK3, 'coco', '1dK1qFjaU8GmqvsmMr1mgppNJlNacHPtG', 48.3, 43.2),
    _msvmamba('micro', _UPER, 'ade20k', '1naZHL4mwTchllAE001SsyZ_z4y_JRF0s', 45.1, 45.4),
    _msvmamba('tiny', _UPER, 'ade20k', '1FaFPFExDd_4goIlLjTR7fXsuMRr-vYoY', 47.8),
    _plainmamba('l1', _MASK, 'coco', 'detection/maskrcnn/l1_1x', 44.1, 39.1),
    _plainmamba('l2', _MASK, 'coco', 'detection/maskrcnn/l2_1x', 46.0, 40.6),
    _plainmamba('l3', _MASK, 'coco', 'detection/maskrcnn/l3_1x', 46.8, 41.2),
    _plainmamba('l1', 'retinanet_1x', 'coco', 'detection/retinanet/l1_1x', 41.7),
    _plainmamba('l2', 'retinanet_1x', 'coco', 'detection/retinanet/l2_1x', 43.9),
    _plainmamba('l3', 'retinanet_1x', 'coco', 'detection/retinanet/l3_1x', 44.8),
    _plainmamba('l1', _UPER, 'ade20k', 'segmentation/l1_upernet', 44.1),
    _plainmamba('l2', _UPER, 'ade20k', 'segmentation/l2_upernet', 46.8),
    _plainmamba('l3', _UPER, 'ade20k', 'segmentation/l3_upernet', 49.1),
)
DOWNSTREAM = {entry.name: entry for entry in _PUBLISHED}
