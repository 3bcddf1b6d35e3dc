"""UPerNet with VMamba-B (s1l20), 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vmamba_base_s1l20', drop_path_rate=0.5, init_cfg=dict(checkpoint='vmamba_base_s1l20.in1k')
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
