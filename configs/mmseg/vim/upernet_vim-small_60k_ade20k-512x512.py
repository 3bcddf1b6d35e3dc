"""UPerNet with Vim-S, 60k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_60k.py'
model = dict(
    backbone=dict(
        model_name='vim_small_patch16_224',
        rotary=True,
        features='stream',
        init_cfg=dict(checkpoint='vim_small_patch16_224.in1k'),
    ),
    neck=dict(in_channels=384),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=384),
    auxiliary_head=dict(in_channels=384),
)
