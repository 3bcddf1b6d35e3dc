"""Mask R-CNN with Spatial-Mamba-B, FPN, 1x, COCO: box AP 50.4, mask AP 45.1 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_base', drop_path_rate=0.5, init_cfg=dict(checkpoint='spatialmamba_base.in1k')
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
