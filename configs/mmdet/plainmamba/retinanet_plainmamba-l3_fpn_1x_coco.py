"""RetinaNet with PlainMamba-L3, FPN, 1x, COCO: box AP 44.8 by the authors."""

_base_ = './_base_/retinanet_1x.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        adapter=dict(num_heads=8),
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='plainmamba_l3.in1k'),
    ),
    neck=dict(in_channels=[448, 448, 448, 448]),
)
