"""Mask R-CNN with GroupMamba-B, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='groupmamba_base', drop_path_rate=0.2, init_cfg=dict(checkpoint='groupmamba_base.dist_in1k')
    ),
    neck=dict(in_channels=[96, 192, 424, 512]),
)
