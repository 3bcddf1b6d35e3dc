"""UPerNet with VMamba-S (s2l15), 160k iterations, ADE20K: mIoU 50.6, mIoU (multi-scale) 51.2 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vmamba_small_s2l15', drop_path_rate=0.3, init_cfg=dict(checkpoint='vmamba_small_s2l15.in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
