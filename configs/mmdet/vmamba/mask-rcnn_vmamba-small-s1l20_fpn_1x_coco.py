"""Mask R-CNN with VMamba-S (s1l20), FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_small_s1l20', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_small_s1l20.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
