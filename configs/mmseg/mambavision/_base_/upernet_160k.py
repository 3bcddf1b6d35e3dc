"""MambaVision under UPerNet: windows of the whole map and more.

Drop path: upstream's configs name rates that its backbone ignores; every run had the default, 0.2.

Source: arXiv:2407.08083; NVlabs/MambaVision@7860a50, semantic_segmentation
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(backbone=dict(out_norm=True, windows=(64, 32), drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=0.01))
