"""GroupMamba under Mask R-CNN, 12 epochs: schedule and drop path of VMamba.

Source: arXiv:2407.13772
"""

_base_ = '../../_base_/mask-rcnn_1x.py'
model = dict(backbone=dict(out_norm=True))
