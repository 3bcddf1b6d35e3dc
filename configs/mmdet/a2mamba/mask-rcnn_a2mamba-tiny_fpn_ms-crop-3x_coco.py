"""Mask R-CNN with A2Mamba-T by the settings of VMamba, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='a2mamba_tiny', drop_path_rate=0.1, init_cfg=dict(checkpoint='a2mamba_tiny.in1k')),
    neck=dict(in_channels=[48, 96, 256, 448]),
)
