"""Vim under UPerNet: maps of stride 16 resampled to four strides; sliding windows when testing.

Source: arXiv:2401.09417, appendix B (schedule); hustvl/Vim@dd0358a, seg/configs/vim/upernet (model)
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(
    backbone=dict(out_indices=(5, 11, 17, 23), img_size=512, class_token=False, features='mixer', drop_path_rate=0.1),
    neck=dict(type='visionssm.ResamplePyramid'),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
