"""Mask R-CNN with A2Mamba-L by the settings of VMamba, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='a2mamba_large', drop_path_rate=0.5, init_cfg=dict(checkpoint='a2mamba_large.in1k')),
    neck=dict(in_channels=[96, 192, 448, 672]),
)
