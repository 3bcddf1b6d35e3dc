"""UPerNet with MambaOut-Base, 160k iterations, ADE20K: mIoU 49.6, mIoU (multi-scale) 51.0 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambaout_base', drop_path_rate=0.6, init_cfg=dict(checkpoint='mambaout_base.in1k')),
    decode_head=dict(in_channels=[128, 256, 512, 768]),
    auxiliary_head=dict(in_channels=512),
)
