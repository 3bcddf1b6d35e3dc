"""VSSD under Mask R-CNN, 12 epochs: the settings of VMamba.

Source: arXiv:2407.18559; YuHengsss/VSSD@87b753b3
"""

_base_ = '../../_base_/mask-rcnn_1x.py'
model = dict(backbone=dict(out_norm=True))
