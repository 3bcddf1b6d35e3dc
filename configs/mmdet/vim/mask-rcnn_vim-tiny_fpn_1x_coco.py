"""Mask R-CNN with Vim-Ti, FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='vim_tiny_patch16_224', init_cfg=dict(checkpoint='vim_tiny_patch16_224.in1k')),
    neck=dict(in_channels=192),
)
