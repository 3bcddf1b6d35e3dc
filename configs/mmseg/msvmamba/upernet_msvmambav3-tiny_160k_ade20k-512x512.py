"""UPerNet with MSVMamba-T (v3), 160k iterations, ADE20K: mIoU 47.9, mIoU (multi-scale) 48.5 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='msvmambav3_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmambav3_tiny.in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
