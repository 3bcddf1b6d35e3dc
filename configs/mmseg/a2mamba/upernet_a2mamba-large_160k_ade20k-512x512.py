"""UPerNet with A2Mamba-L by the settings of VMamba, 160k iterations, ADE20K: no reported result."""

_base_ = '../_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='a2mamba_large', drop_path_rate=0.5, init_cfg=dict(checkpoint='a2mamba_large.in1k')),
    decode_head=dict(in_channels=[96, 192, 448, 672]),
    auxiliary_head=dict(in_channels=448),
)
