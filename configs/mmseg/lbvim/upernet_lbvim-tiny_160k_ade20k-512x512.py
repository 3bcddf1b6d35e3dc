"""UPerNet with LBVim-Ti, 160k iterations, ADE20K: no reported result."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='lbvim_tiny_patch16_224', init_cfg=dict(checkpoint='lbvim_tiny_patch16_224.in1k')),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
    auxiliary_head=dict(in_channels=192),
)
