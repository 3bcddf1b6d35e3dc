"""UPerNet with A2Mamba-N by the settings of VMamba, 160k iterations, ADE20K: no reported result."""

_base_ = '../_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='a2mamba_nano', drop_path_rate=0.0, init_cfg=dict(checkpoint='a2mamba_nano.in1k')),
    decode_head=dict(in_channels=[32, 64, 128, 192]),
    auxiliary_head=dict(in_channels=128),
)
