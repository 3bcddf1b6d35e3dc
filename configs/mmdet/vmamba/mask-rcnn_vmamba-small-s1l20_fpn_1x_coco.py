"""Mask R-CNN with VMamba-S (s1l20), FPN, 1x, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead has no such config: settings of s2l15
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-small-s1l20_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_small_s1l20',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_small_s1l20.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
