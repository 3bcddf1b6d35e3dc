"""VSSD under Mask R-CNN, 36 epochs, multi-scale: the settings of VMamba.

Source: arXiv:2407.18559; YuHengsss/VSSD@87b753b3
"""

_base_ = '../../_base_/mask-rcnn_ms-crop-3x.py'
model = dict(backbone=dict(out_norm=True))
