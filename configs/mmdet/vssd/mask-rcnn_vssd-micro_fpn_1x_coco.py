"""Mask R-CNN with VSSD-M, FPN, 1x, COCO: box AP 45.4, mask AP 41.3 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='vssd_micro', drop_path_rate=0.1, init_cfg=dict(checkpoint='vssd_micro.in1k')),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
