"""UPerNet with Vim-Ti, 60k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_60k.py'
model = dict(
    backbone=dict(model_name='vim_tiny_patch16_224', init_cfg=dict(checkpoint='vim_tiny_patch16_224.in1k')),
    neck=dict(in_channels=192),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=192),
    auxiliary_head=dict(in_channels=192),
)
