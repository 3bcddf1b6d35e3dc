"""Mask R-CNN with MambaOut-Tiny, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='mambaout_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='mambaout_tiny.in1k')),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
