"""UPerNet with VMamba-B (s2l15), 160k iterations, ADE20K: mIoU 51.0, mIoU (multi-scale) 51.6 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vmamba_base_s2l15', drop_path_rate=0.6, init_cfg=dict(checkpoint='vmamba_base_s2l15.in1k')
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
