"""Mask R-CNN with MambaOut-Base, FPN, 1x, COCO: box AP 47.4, mask AP 43.0 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='mambaout_base', drop_path_rate=0.6, init_cfg=dict(checkpoint='mambaout_base.in1k')),
    neck=dict(in_channels=[128, 256, 512, 768]),
)
