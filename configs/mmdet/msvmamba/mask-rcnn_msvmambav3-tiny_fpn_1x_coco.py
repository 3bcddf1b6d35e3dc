"""Mask R-CNN with MSVMamba-T (v3), FPN, 1x, COCO: box AP 46.9, mask AP 42.5 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='msvmambav3_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmambav3_tiny.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
