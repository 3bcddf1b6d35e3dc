"""UPerNet with MambaOut-Tiny, 160k iterations, ADE20K: mIoU 47.4, mIoU (multi-scale) 48.6 by the authors."""

_base_ = './_base_/upernet_160k.py'
model = dict(
    backbone=dict(model_name='mambaout_tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint='mambaout_tiny.in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384),
)
