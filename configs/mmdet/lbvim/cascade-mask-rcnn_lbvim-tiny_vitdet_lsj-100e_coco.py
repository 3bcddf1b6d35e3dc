"""Cascade Mask R-CNN with LBVim-Ti in the manner of ViTDet, 100 epochs, COCO.

Source: arXiv:2506.15976; cvlab-stonybrook/LBMamba@5215551, detection/configs/lbmamba
Reported: none found for this model and schedule
Checkpoint: none published
Backbone: download by hand from https://github.com/cvlab-stonybrook/LBMamba/releases/tag/v1.0
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 32 GPUs with 2 images each:
    torchrun --nproc-per-node 32 tools/train_mm.py cascade-mask-rcnn_lbvim-tiny_vitdet_lsj-100e_coco --launcher pytorch
"""

_base_ = './_base_/vitdet_lsj-100e.py'

model = dict(
    backbone=dict(
        model_name='lbvim_tiny_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='lbvim_tiny_patch16_224'),
    ),
    neck=dict(in_channels=192),
)
