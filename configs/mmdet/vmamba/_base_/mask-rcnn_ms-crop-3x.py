"""VMamba under Mask R-CNN, 36 epochs with multi-scale crops.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, detection/configs/vssm*/mask_rcnn_vssm_fpn_coco_*_ms_3x.py
`vssm` is the first release (vanilla), `vssm1` the later ones, `tiny1` the tiny s2l5; s1l20 takes the settings of s2l15.
The base sizes have no such config: theirs of 12 epochs with this schedule.
"""

_base_ = '../../_base_/mask-rcnn_ms-crop-3x.py'
model = dict(backbone=dict(out_norm=True))
