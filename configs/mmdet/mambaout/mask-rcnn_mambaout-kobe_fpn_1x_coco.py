"""Mask R-CNN with MambaOut-Kobe, FPN, 1x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='mambaout_kobe', drop_path_rate=0.025, init_cfg=dict(checkpoint='mambaout_kobe.in1k')),
    neck=dict(in_channels=[48, 96, 192, 288]),
)
