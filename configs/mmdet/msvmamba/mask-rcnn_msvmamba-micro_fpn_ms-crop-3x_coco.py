"""Mask R-CNN with MSVMamba-M, FPN, multi-scale 3x, COCO: box AP 46.3, mask AP 41.8 by the authors."""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='msvmamba_micro', drop_path_rate=0.2, init_cfg=dict(checkpoint='msvmamba_micro.in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
