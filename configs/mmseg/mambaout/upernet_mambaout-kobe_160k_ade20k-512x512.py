"""UPerNet with MambaOut-Kobe, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambaout_kobe', drop_path_rate=0.025, init_cfg=dict(checkpoint='mambaout_kobe.in1k')),
    decode_head=dict(in_channels=[48, 96, 192, 288]),
    auxiliary_head=dict(in_channels=192),
)
