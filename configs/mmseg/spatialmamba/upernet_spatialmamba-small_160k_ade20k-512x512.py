"""UPerNet with Spatial-Mamba-S, 160k iterations, ADE20K: mIoU 50.6, mIoU (multi-scale) 51.4 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_small', drop_path_rate=0.3, init_cfg=dict(checkpoint='spatialmamba_small.in1k')
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
