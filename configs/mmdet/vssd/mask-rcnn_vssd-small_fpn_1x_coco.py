"""Mask R-CNN with VSSD-S, FPN, 1x, COCO: box AP 48.4, mask AP 43.5 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='vssd_small', drop_path_rate=0.4, init_cfg=dict(checkpoint='vssd_small.in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
