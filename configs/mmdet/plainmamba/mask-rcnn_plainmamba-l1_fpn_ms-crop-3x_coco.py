"""Mask R-CNN with PlainMamba-L1, FPN, multi-scale 3x, COCO: no reported result."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l1',
        adapter=dict(num_heads=6),
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='plainmamba_l1.in1k'),
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)
