"""Mask R-CNN with PlainMamba-L3, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        adapter=dict(num_heads=8),
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='plainmamba_l3.in1k'),
    ),
    neck=dict(in_channels=[448, 448, 448, 448]),
)
