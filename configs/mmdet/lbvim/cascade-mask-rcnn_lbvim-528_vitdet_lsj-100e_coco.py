"""Cascade Mask R-CNN with LBVim-528 as in ViTDet, 100 epochs, COCO: no reported result."""

_base_ = './_base_/vitdet_lsj-100e.py'
model = dict(
    backbone=dict(model_name='lbvim_528_patch16_224', init_cfg=dict(checkpoint='lbvim_528_patch16_224.in1k')),
    neck=dict(in_channels=528),
)
