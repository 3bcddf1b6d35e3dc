"""UPerNet with VMamba-T (s2l5), 160k iterations, ADE20K: mIoU 48.3, mIoU (multi-scale) 48.6 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='vmamba_tiny_s2l5', drop_path_rate=0.2, init_cfg=dict(checkpoint='vmamba_tiny_s2l5.in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
