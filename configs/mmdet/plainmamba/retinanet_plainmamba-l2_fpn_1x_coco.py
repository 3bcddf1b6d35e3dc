"""RetinaNet with PlainMamba-L2, FPN, 1x, COCO: box AP 43.9 by the authors."""

_base_ = './_base_/retinanet_1x.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l2',
        adapter=dict(num_heads=6),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='plainmamba_l2.in1k'),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
