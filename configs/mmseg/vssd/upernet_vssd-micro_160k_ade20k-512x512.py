"""UPerNet with VSSD-M, 160k iterations, ADE20K: mIoU 45.6, mIoU (multi-scale) 46.0 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='vssd_micro', drop_path_rate=0.1, init_cfg=dict(checkpoint='vssd_micro.in1k')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
