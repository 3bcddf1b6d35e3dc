"""PSPNet with MobileMamba-B4, 80k iterations, ADE20K: mIoU 36.9 by the authors."""

_base_ = './_base_/pspnet_80k.py'
model = dict(
    backbone=dict(model_name='mobilemamba_b4', drop_path_rate=0.03, init_cfg=dict(checkpoint='mobilemamba_b4.in1k')),
)
