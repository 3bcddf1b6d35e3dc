"""UPerNet with MambaOut-Small, 160k iterations, ADE20K: mIoU 49.5, mIoU (multi-scale) 50.6 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambaout_small', drop_path_rate=0.4, init_cfg=dict(checkpoint='mambaout_small.in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384),
)
