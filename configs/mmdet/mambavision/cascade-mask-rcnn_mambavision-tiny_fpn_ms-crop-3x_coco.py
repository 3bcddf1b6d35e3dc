"""Cascade Mask R-CNN with MambaVision-T, FPN, multi-scale 3x, COCO: box AP 51.1, mask AP 44.3 by the authors."""

_base_ = './_base_/cascade-mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='mambavision_tiny', init_cfg=dict(checkpoint='mambavision_tiny.in1k')),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
