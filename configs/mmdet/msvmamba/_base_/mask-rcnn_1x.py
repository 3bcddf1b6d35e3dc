"""MSVMamba under Mask R-CNN, 12 epochs: the settings of VMamba.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191; for the v3 models, @fca4a391 has no configs
"""

_base_ = '../../_base_/mask-rcnn_1x.py'
model = dict(backbone=dict(out_norm=True))
