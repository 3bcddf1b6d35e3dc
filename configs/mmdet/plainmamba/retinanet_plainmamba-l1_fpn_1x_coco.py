"""RetinaNet with PlainMamba-L1, FPN, 1x, COCO: box AP 41.7 by the authors."""

_base_ = './_base_/retinanet_1x.py'
model = dict(
    backbone=dict(
        model_name='plainmamba_l1',
        adapter=dict(num_heads=6),
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='plainmamba_l1.in1k'),
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)
