"""Vim under Cascade Mask R-CNN, in the manner of ViTDet.

Source: arXiv:2401.09417, appendix B; hustvl/Vim@dd0358a, det (detectron2; the paper says 380k iterations)
"""

_base_ = '../../_base_/vitdet_lsj-100e.py'
model = dict(backbone=dict(out_indices=(23,), img_size=1024, class_token=False, rotary=True, drop_path_rate=0.1))
