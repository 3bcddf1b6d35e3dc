"""UPerNet with LBVim-528, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='lbvim_528_patch16_224', out_channels=384, init_cfg=dict(checkpoint='lbvim_528_patch16_224.in1k')
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
