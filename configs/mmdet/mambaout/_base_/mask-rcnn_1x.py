"""MambaOut under Mask R-CNN, 12 epochs.

Source: arXiv:2405.07992, section 4.3
"""

_base_ = '../../_base_/mask-rcnn_1x.py'
optim_wrapper = dict(type='AmpOptimWrapper')
