"""UPerNet with PlainMamba-L3, 160k iterations, ADE20K: mIoU 49.1 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        out_indices=(8, 17, 26, 35),
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='plainmamba_l3.in1k'),
    ),
    decode_head=dict(in_channels=[448, 448, 448, 448]),
    auxiliary_head=dict(in_channels=448),
)
