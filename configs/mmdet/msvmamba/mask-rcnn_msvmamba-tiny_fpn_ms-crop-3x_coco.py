"""Mask R-CNN with MSVMamba-T, FPN, multi-scale 3x, COCO: box AP 48.3, mask AP 43.2 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='msvmamba_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmamba_tiny.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
