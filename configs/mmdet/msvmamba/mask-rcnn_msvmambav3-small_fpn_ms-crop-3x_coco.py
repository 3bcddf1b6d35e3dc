"""Mask R-CNN with MSVMamba-S (v3), FPN, multi-scale 3x, COCO: box AP 49.7, mask AP 44.2 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='msvmambav3_small', drop_path_rate=0.4, init_cfg=dict(checkpoint='msvmambav3_small.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
