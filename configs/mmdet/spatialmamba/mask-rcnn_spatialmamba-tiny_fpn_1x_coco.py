"""Mask R-CNN with Spatial-Mamba-T, FPN, 1x, COCO: box AP 47.6, mask AP 42.9 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='spatialmamba_tiny.in1k')
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
