"""Mask R-CNN with LBVim-Ti, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='lbvim_tiny_patch16_224', init_cfg=dict(checkpoint='lbvim_tiny_patch16_224.in1k')),
    neck=dict(in_channels=192),
)
