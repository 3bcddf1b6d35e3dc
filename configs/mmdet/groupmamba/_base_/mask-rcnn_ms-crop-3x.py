"""GroupMamba under Mask R-CNN, 36 epochs with multi-scale crops: schedule and drop path of VMamba.

Source: arXiv:2407.13772
"""

_base_ = '../../_base_/mask-rcnn_ms-crop-3x.py'
model = dict(backbone=dict(out_norm=True))
