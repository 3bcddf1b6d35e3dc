"""UPerNet with VMamba-T, first release, 160k iterations, ADE20K: mIoU 47.3, mIoU (multi-scale) 48.3 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_tiny', drop_path_rate=0.3, init_cfg=dict(checkpoint='vmamba_vanilla_tiny.in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
