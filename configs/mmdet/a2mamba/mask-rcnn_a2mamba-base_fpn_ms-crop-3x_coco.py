"""Mask R-CNN with A2Mamba-B, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2507.16624; schedule as VMamba, drop path as in classification
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_a2mamba-base_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='a2mamba_base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='a2mamba_base.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
