"""Mask R-CNN with PlainMamba-L2, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l2',
        adapter=dict(num_heads=6),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='plainmamba_l2.in1k'),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
