"""UPerNet with Vim-B, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        model_name='vim_base_patch16_224',
        rotary=True,
        features='stream',
        init_cfg=dict(checkpoint='vim_base_patch16_224.in1k'),
    ),
    neck=dict(in_channels=768),
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=768),
    auxiliary_head=dict(in_channels=768),
)
