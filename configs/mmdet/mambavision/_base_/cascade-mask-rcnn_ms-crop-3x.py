"""MambaVision under Cascade Mask R-CNN: windows of nearly the whole map, mixed precision.

Drop path: upstream's configs name rates that its backbone ignores; every run had the default, 0.2.

Source: arXiv:2407.08083; NVlabs/MambaVision@7860a50, object_detection
"""

_base_ = '../../_base_/cascade-mask-rcnn_ms-crop-3x.py'
model = dict(backbone=dict(out_norm=True, windows=(112, 56), drop_path_rate=0.2))
optim_wrapper = dict(type='AmpOptimWrapper')
