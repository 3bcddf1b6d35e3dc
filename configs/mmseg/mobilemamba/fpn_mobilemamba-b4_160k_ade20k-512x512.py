"""Semantic FPN with MobileMamba-B4, 160k iterations, ADE20K: mIoU 42.5 by the authors."""

_base_ = './_base_/fpn_160k.py'
model = dict(
    backbone=dict(model_name='mobilemamba_b4', drop_path_rate=0.03, init_cfg=dict(checkpoint='mobilemamba_b4.in1k')),
)
