"""UPerNet with MambaVision-S, 160k iterations, ADE20K: mIoU 48.2 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='mambavision_small', windows=(160, 56), init_cfg=dict(checkpoint='mambavision_small.in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(optimizer=dict(lr=6e-5))
