"""UPerNet with Vim-Ti, 160k iterations, ADE20K: mIoU 41.0 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='vim_tiny_patch16_224', init_cfg=dict(checkpoint='vim_tiny_patch16_224.in1k')),
    neck=dict(in_channels=192),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=192),
    auxiliary_head=dict(in_channels=192),
)
