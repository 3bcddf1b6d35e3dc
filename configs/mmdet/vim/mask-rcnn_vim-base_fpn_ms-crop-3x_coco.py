"""Mask R-CNN with Vim-B, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2401.09417; ours: upstream has no such config, the backbone is that of its ViTDet
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vim-base_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='vim_base_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='vim_base_patch16_224.in1k'),
    ),
    neck=dict(in_channels=768),
)
