"""Mask R-CNN with VMamba-B, first release, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_base', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_vanilla_base.in1k')
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
