"""Mask R-CNN with GroupMamba-B, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2407.13772; schedule and drop path as VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Backbone: download by hand, `visionssm info groupmamba_base` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_groupmamba-base_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='groupmamba_base',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='groupmamba_base.dist_in1k'),
    ),
    neck=dict(in_channels=[96, 192, 424, 512]),
)
