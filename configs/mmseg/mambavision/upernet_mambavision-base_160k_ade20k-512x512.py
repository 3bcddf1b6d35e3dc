"""UPerNet with MambaVision-B, 160k iterations, ADE20K: mIoU 49.1 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambavision_base', init_cfg=dict(checkpoint='mambavision_base.in1k')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
