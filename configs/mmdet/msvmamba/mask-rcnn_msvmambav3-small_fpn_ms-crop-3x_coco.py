"""Mask R-CNN with MSVMamba-S (v3), FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@fca4a391 has no configs: settings of VMamba
Reported: box AP 49.7, mask AP 44.2, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_msvmambav3-small_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='msvmambav3_small',
        out_norm=True,
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='msvmambav3_small.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
