"""Mask R-CNN with VSSD-M, FPN, multi-scale 3x, COCO: box AP 47.7, mask AP 42.8 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='vssd_micro', drop_path_rate=0.1, init_cfg=dict(checkpoint='vssd_micro.in1k')),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
