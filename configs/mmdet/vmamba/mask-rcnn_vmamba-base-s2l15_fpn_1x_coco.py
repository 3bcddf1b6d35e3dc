"""Mask R-CNN with VMamba-B (s2l15), FPN, 1x, COCO: box AP 49.2, mask AP 44.1 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_base_s2l15', drop_path_rate=0.6, init_cfg=dict(checkpoint='vmamba_base_s2l15.in1k')
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
