"""MobileMamba under Semantic FPN, 160k iterations."""

_base_ = ['mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', './settings.py']

model = dict(
    pretrained=None,
    backbone=_base_.backbone,
    neck=dict(in_channels=[200, 376, 448], num_outs=3),
    decode_head=dict(in_channels=[256, 256, 256], in_index=[0, 1, 2], feature_strides=[16, 32, 64]),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = _base_.adamw
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=160000, by_epoch=False)]
