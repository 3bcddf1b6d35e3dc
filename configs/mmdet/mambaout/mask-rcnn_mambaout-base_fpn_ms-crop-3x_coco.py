"""Mask R-CNN with MambaOut-Base, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='mambaout_base', drop_path_rate=0.6, init_cfg=dict(checkpoint='mambaout_base.in1k')),
    neck=dict(in_channels=[128, 256, 512, 768]),
)
