"""UPerNet with GroupMamba-B, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='groupmamba_base', drop_path_rate=0.2, init_cfg=dict(checkpoint='groupmamba_base.dist_in1k')
    ),
    decode_head=dict(in_channels=[96, 192, 424, 512]),
    auxiliary_head=dict(in_channels=424),
)
