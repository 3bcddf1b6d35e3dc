"""Mask R-CNN with VMamba-S, first release, FPN, 1x, COCO: box AP 48.2, mask AP 43.0 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_small', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_vanilla_small.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
