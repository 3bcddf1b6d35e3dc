"""UPerNet with A2Mamba-T by the settings of VMamba, 160k iterations, ADE20K: no reported result."""

_base_ = '../_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='a2mamba_tiny', drop_path_rate=0.1, init_cfg=dict(checkpoint='a2mamba_tiny.in1k')),
    decode_head=dict(in_channels=[48, 96, 256, 448]),
    auxiliary_head=dict(in_channels=256),
)
