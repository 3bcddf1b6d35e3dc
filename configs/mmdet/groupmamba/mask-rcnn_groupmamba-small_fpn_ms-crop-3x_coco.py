"""Mask R-CNN with GroupMamba-S, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='groupmamba_small', drop_path_rate=0.2, init_cfg=dict(checkpoint='groupmamba_small.dist_in1k')
    ),
    neck=dict(in_channels=[64, 128, 348, 512]),
)
