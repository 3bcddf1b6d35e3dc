"""UPerNet with A2Mamba-S by the settings of VMamba, 160k iterations, ADE20K: no reported result."""

_base_ = '../_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='a2mamba_small', drop_path_rate=0.2, init_cfg=dict(checkpoint='a2mamba_small.in1k')),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
