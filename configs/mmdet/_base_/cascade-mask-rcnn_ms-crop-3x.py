"""Cascade Mask R-CNN as the papers of Swin and ConvNeXt have it: 36 epochs on COCO, 8 GPUs with 2 images each."""

_base_ = 'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py'

custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='visionssm.Backbone', out_indices=(0, 1, 2, 3), init_cfg=dict(type='Pretrained'))
)
# Swin's optimiser: ConvNeXt's layer decay knows ConvNeXt's names alone
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
)
