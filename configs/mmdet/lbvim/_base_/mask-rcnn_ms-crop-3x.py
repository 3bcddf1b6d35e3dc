"""LBVim with a simple feature pyramid under Mask R-CNN, 36 epochs with multi-scale crops.

Source: arXiv:2506.15976; ours: upstream has no such config, the backbone is that of its ViTDet
"""

_base_ = '../../_base_/mask-rcnn_ms-crop-3x.py'
model = dict(
    backbone=dict(out_indices=(23,), out_norm=True, img_size=1024, features='mixer', drop_path_rate=0.1),
    neck=dict(_delete_=True, type='visionssm.SimplePyramid', out_channels=256),
)
