"""Mask R-CNN with VMamba-S (s2l15), FPN, multi-scale 3x, COCO: box AP 49.9, mask AP 44.2 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_small_s2l15', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_small_s2l15.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
