"""UPerNet with PlainMamba-L2, 160k iterations, ADE20K: mIoU 46.8 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l2',
        out_indices=(5, 11, 17, 23),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='plainmamba_l2.in1k'),
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
