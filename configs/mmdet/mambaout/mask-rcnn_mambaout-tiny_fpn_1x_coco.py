"""Mask R-CNN with MambaOut-Tiny, FPN, 1x, COCO: box AP 45.1, mask AP 41.0 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='mambaout_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='mambaout_tiny.in1k')),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
