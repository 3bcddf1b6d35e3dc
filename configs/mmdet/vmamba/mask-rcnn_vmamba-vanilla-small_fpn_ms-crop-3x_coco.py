"""Mask R-CNN with VMamba-S, first release, FPN, multi-scale 3x, COCO: box AP 49.7, mask AP 44.0 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_small', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_vanilla_small.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
