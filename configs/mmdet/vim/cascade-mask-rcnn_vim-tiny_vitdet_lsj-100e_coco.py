"""Cascade Mask R-CNN with Vim-Ti as in ViTDet, 100 epochs, COCO: box AP 45.7, mask AP 39.2 by the authors."""

_base_ = './_base_/vitdet_lsj-100e.py'
model = dict(
    backbone=dict(model_name='vim_tiny_patch16_224', init_cfg=dict(checkpoint='vim_tiny_patch16_224.in1k')),
    neck=dict(in_channels=192),
)
