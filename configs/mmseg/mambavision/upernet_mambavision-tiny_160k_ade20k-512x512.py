"""UPerNet with MambaVision-T, 160k iterations, ADE20K: mIoU 46.0 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambavision_tiny', init_cfg=dict(checkpoint='mambavision_tiny.in1k')),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
