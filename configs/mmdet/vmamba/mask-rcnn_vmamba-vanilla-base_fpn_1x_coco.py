"""Mask R-CNN with VMamba-B, first release, FPN, 1x, COCO: box AP 48.6, mask AP 43.3 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_base', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_vanilla_base.in1k')
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
