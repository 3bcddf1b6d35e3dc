"""UPerNet with GroupMamba-T, 160k iterations, ADE20K: mIoU 48.6, mIoU (multi-scale) 49.2 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='groupmamba_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='groupmamba_tiny.dist_in1k')
    ),
    decode_head=dict(in_channels=[64, 128, 348, 448]),
    auxiliary_head=dict(in_channels=348),
)
