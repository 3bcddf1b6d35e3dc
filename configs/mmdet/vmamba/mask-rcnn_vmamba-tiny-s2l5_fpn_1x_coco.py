"""Mask R-CNN with VMamba-T (s2l5), FPN, 1x, COCO: box AP 47.4, mask AP 42.7 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='vmamba_tiny_s2l5', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_tiny_s2l5.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
