"""UPerNet, 160k iterations on ADE20K at 512x512, 8 GPUs with 2 images each: Swin's settings, which VMamba took over.

Add `--tta` when testing for the multi-scale mIoU.
"""

_base_ = 'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='visionssm.Backbone', out_indices=(0, 1, 2, 3), init_cfg=dict(type='Pretrained'))
)
