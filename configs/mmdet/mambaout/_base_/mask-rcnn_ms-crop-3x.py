"""MambaOut under Mask R-CNN, 36 epochs with multi-scale crops.

Source: arXiv:2405.07992, section 4.3, for 12 epochs; 36 as VMamba
"""

_base_ = '../../_base_/mask-rcnn_ms-crop-3x.py'
optim_wrapper = dict(type='AmpOptimWrapper')
