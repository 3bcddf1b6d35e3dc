"""Mask R-CNN with VMamba-S (s2l15), FPN, 1x, COCO: box AP 48.7, mask AP 43.7 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_small_s2l15', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_small_s2l15.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
