"""UPerNet with Spatial-Mamba-B, 160k iterations, ADE20K: mIoU 51.8, mIoU (multi-scale) 52.6 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_base', drop_path_rate=0.5, init_cfg=dict(checkpoint='spatialmamba_base.in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
