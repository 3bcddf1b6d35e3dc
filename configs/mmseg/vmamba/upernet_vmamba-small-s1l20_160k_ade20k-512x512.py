"""UPerNet with VMamba-S (s1l20), 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vmamba_small_s1l20', drop_path_rate=0.3, init_cfg=dict(checkpoint='vmamba_small_s1l20.in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
