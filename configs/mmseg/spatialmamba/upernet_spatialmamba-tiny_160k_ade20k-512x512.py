"""UPerNet with Spatial-Mamba-T, 160k iterations, ADE20K: mIoU 48.6, mIoU (multi-scale) 49.4 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='spatialmamba_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='spatialmamba_tiny.in1k')
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
