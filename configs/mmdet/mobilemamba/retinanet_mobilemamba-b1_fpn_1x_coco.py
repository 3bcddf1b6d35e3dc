"""RetinaNet with MobileMamba-B1, FPN, 1x, COCO: box AP 39.6 by the authors."""

_base_ = './_base_/retinanet_1x.py'
model = dict(
    backbone=dict(model_name='mobilemamba_b1', drop_path_rate=0.03, init_cfg=dict(checkpoint='mobilemamba_b1.in1k')),
)
