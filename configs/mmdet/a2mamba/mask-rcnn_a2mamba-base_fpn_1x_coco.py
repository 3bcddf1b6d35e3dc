"""Mask R-CNN with A2Mamba-B by the settings of VMamba, FPN, 1x, COCO: no reported result."""

_base_ = '../_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='a2mamba_base', drop_path_rate=0.4, init_cfg=dict(checkpoint='a2mamba_base.in1k')),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
