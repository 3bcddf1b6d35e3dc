"""Mask R-CNN with Spatial-Mamba-S, FPN, multi-scale 3x, COCO: box AP 50.5, mask AP 44.6 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_small', drop_path_rate=0.3, init_cfg=dict(checkpoint='spatialmamba_small.in1k')
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
