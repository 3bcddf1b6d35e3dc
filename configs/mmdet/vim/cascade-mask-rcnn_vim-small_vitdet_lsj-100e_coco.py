"""Cascade Mask R-CNN with Vim-S as in ViTDet, 100 epochs, COCO: no reported result."""

_base_ = './_base_/vitdet_lsj-100e.py'
model = dict(
    backbone=dict(model_name='vim_small_patch16_224', init_cfg=dict(checkpoint='vim_small_patch16_224.in1k')),
    neck=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.837))
