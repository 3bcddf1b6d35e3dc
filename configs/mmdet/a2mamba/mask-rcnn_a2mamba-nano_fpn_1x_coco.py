"""Mask R-CNN with A2Mamba-N by the settings of VMamba, FPN, 1x, COCO: no reported result."""

_base_ = '../_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='a2mamba_nano', drop_path_rate=0.0, init_cfg=dict(checkpoint='a2mamba_nano.in1k')),
    neck=dict(in_channels=[32, 64, 128, 192]),
)
