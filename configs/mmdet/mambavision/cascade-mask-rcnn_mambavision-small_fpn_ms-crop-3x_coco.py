"""Cascade Mask R-CNN with MambaVision-S, FPN, multi-scale 3x, COCO: box AP 52.3, mask AP 45.2 by the authors."""

_base_ = './_base_/cascade-mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='mambavision_small', init_cfg=dict(checkpoint='mambavision_small.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
