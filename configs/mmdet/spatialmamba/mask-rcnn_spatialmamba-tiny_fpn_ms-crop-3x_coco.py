"""Mask R-CNN with Spatial-Mamba-T, FPN, multi-scale 3x, COCO: box AP 49.3, mask AP 43.6 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='spatialmamba_tiny.in1k')
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
