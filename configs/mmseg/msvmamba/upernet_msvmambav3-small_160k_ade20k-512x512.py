"""UPerNet with MSVMamba-S (v3), 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='msvmambav3_small', drop_path_rate=0.4, init_cfg=dict(checkpoint='msvmambav3_small.in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
