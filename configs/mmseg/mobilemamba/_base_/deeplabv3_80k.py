"""MobileMamba under DeepLabv3, 80k iterations."""

_base_ = ['mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512.py', './settings.py']

model = dict(pretrained=None, backbone=_base_.backbone, decode_head=_base_.last, auxiliary_head=_base_.middle)
train_dataloader = dict(batch_size=8)
optim_wrapper = _base_.adamw
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]
