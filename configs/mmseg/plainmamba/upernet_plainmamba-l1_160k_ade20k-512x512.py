"""UPerNet with PlainMamba-L1, 160k iterations, ADE20K: mIoU 44.1 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l1',
        out_indices=(5, 11, 17, 23),
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='plainmamba_l1.in1k'),
    ),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
    auxiliary_head=dict(in_channels=192),
)
