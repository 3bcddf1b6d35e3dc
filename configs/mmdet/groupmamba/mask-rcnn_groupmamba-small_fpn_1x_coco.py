"""Mask R-CNN with GroupMamba-S, FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='groupmamba_small', drop_path_rate=0.2, init_cfg=dict(checkpoint='groupmamba_small.dist_in1k')
    ),
    neck=dict(in_channels=[64, 128, 348, 512]),
)
