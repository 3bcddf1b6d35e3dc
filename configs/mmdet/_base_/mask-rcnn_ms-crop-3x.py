"""Mask R-CNN with an FPN, 36 epochs on COCO with multi-scale crops, 8 GPUs with 2 images each: Swin's settings."""

_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'

custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='visionssm.Backbone', out_indices=(0, 1, 2, 3), init_cfg=dict(type='Pretrained'))
)
