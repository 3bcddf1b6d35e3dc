"""Mask R-CNN with MSVMamba-T, FPN, 1x, COCO: box AP 46.9, mask AP 42.2 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='msvmamba_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmamba_tiny.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
