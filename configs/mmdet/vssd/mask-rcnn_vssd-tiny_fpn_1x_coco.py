"""Mask R-CNN with VSSD-T, FPN, 1x, COCO: box AP 46.9, mask AP 42.6 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='vssd_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='vssd_tiny.in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
