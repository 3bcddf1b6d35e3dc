"""Semantic FPN with VCMamba-B, 40k iterations, ADE20K: mIoU 47.1 by the authors."""

_base_ = './_base_/fpn_40k.py'
model = dict(
    backbone=dict(model_name='vcmamba_b', drop_path_rate=0.2, init_cfg=dict(checkpoint='vcmamba_b.dist_in1k')),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
