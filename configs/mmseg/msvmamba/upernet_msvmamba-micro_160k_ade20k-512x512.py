"""UPerNet with MSVMamba-M, 160k iterations, ADE20K: mIoU 45.1, mIoU (multi-scale) 45.4 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='msvmamba_micro', drop_path_rate=0.3, init_cfg=dict(checkpoint='msvmamba_micro.in1k')),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
