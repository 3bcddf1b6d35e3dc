"""Mask R-CNN with VMamba-B (s1l20), FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_base_s1l20', drop_path_rate=0.5, init_cfg=dict(checkpoint='vmamba_base_s1l20.in1k')
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
