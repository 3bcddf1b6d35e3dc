"""Mask R-CNN with VMamba-T, first release, FPN, multi-scale 3x, COCO: box AP 48.5, mask AP 43.2 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_vanilla_tiny.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
