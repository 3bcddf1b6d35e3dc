"""Mask R-CNN with Spatial-Mamba-S, FPN, 1x, COCO: box AP 49.2, mask AP 44.0 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_small', drop_path_rate=0.3, init_cfg=dict(checkpoint='spatialmamba_small.in1k')
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
