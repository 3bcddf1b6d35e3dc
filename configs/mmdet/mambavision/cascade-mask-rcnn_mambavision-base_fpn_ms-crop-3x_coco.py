"""Cascade Mask R-CNN with MambaVision-B, FPN, multi-scale 3x, COCO: box AP 52.8, mask AP 45.7 by the authors."""

_base_ = './_base_/cascade-mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(model_name='mambavision_base', init_cfg=dict(checkpoint='mambavision_base.in1k')),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
