"""UPerNet with MSVMamba-N, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='msvmamba_nano', drop_path_rate=0.3, init_cfg=dict(checkpoint='msvmamba_nano.in1k')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
