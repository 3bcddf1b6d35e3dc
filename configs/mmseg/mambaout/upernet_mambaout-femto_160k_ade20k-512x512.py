"""UPerNet with MambaOut-Femto, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambaout_femto', drop_path_rate=0.025, init_cfg=dict(checkpoint='mambaout_femto.in1k')),
    decode_head=dict(in_channels=[48, 96, 192, 288]),
    auxiliary_head=dict(in_channels=192),
)
