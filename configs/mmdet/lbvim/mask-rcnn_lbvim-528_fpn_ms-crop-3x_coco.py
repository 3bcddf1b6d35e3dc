"""Mask R-CNN with LBVim-528, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='lbvim_528_patch16_224', init_cfg=dict(checkpoint='lbvim_528_patch16_224.in1k')),
    neck=dict(in_channels=528),
)
