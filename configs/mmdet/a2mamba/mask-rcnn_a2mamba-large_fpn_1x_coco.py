"""Mask R-CNN with A2Mamba-L, FPN, 1x, COCO.

Source: arXiv:2507.16624; schedule as VMamba, drop path as in classification
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_a2mamba-large_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='a2mamba_large',
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='a2mamba_large.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 448, 672]),
)
