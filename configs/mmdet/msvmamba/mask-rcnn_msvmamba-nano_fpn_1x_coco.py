"""Mask R-CNN with MSVMamba-N, FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='msvmamba_nano', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmamba_nano.in1k')),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
