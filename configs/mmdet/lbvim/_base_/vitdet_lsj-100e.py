"""LBVim under Cascade Mask R-CNN, in the manner of ViTDet.

Source: arXiv:2506.15976; cvlab-stonybrook/LBMamba@5215551, detection/configs/lbmamba, which has the tiny size alone
"""

_base_ = '../../_base_/vitdet_lsj-100e.py'
model = dict(backbone=dict(out_indices=(23,), out_norm=True, img_size=1024, features='mixer', drop_path_rate=0.1))
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=0.837),  # upstream says 0.7 for 12 layers; these are 24
    clip_grad=dict(max_norm=35, norm_type=2),
)
