"""Mask R-CNN with MSVMamba-M, FPN, 1x, COCO: box AP 43.8, mask AP 39.9 by the authors."""

_base_ = './_base_/mask-rcnn_1x.py'
model = dict(
    backbone=dict(model_name='msvmamba_micro', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmamba_micro.in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
