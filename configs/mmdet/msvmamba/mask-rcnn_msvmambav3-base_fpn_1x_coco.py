"""Mask R-CNN with MSVMamba-B (v3), FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='msvmambav3_base', drop_path_rate=0.5, init_cfg=dict(checkpoint='msvmambav3_base.in1k')),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
