"""Mask R-CNN with Vim-Ti, FPN, 1x, COCO.

Source: arXiv:2401.09417; ours: upstream has no such config, the backbone is that of its ViTDet
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vim-tiny_fpn_1x_coco --launcher pytorch
"""

_base_ = './_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='vim_tiny_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='vim_tiny_patch16_224.in1k'),
    ),
    neck=dict(in_channels=192),
)
