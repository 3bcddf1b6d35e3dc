"""Mask R-CNN with A2Mamba-S by the settings of VMamba, FPN, 1x, COCO: no reported result."""

_base_ = '../_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='a2mamba_small', drop_path_rate=0.2, init_cfg=dict(checkpoint='a2mamba_small.in1k')),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
