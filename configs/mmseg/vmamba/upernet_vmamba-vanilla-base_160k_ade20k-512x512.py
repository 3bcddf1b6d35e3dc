"""UPerNet with VMamba-B, first release, 160k iterations, ADE20K: mIoU 50.0, mIoU (multi-scale) 51.3 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_base', drop_path_rate=0.3, init_cfg=dict(checkpoint='vmamba_vanilla_base.in1k')
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
