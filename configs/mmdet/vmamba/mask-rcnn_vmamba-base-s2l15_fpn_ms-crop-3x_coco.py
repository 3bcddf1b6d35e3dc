"""Mask R-CNN with VMamba-B (s2l15), FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_base_s2l15', drop_path_rate=0.6, init_cfg=dict(checkpoint='vmamba_base_s2l15.in1k')
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
