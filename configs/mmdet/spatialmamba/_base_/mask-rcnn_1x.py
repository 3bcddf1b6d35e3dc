"""Spatial-Mamba under Mask R-CNN, 12 epochs: the settings of VMamba.

Source: arXiv:2410.15091; EdwardChasel/Spatial-Mamba@71221ebf
"""

_base_ = '../../_base_/mask-rcnn_1x.py'
model = dict(backbone=dict(out_norm=True))
