"""Mask R-CNN with MambaOut-Small, FPN, 1x, COCO: box AP 47.4, mask AP 42.7 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='mambaout_small', drop_path_rate=0.4, init_cfg=dict(checkpoint='mambaout_small.in1k')),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
