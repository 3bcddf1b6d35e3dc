"""Mask R-CNN with LBVim-300, FPN, 1x, COCO.

Source: arXiv:2506.15976; ours: upstream has no such config, the backbone is that of its ViTDet
Reported: none found for this model and schedule
Checkpoint: none published
Backbone: download by hand, `visionssm info lbvim_300_patch16_224` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_lbvim-300_fpn_1x_coco --launcher pytorch
"""

_base_ = './_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='lbvim_300_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='lbvim_300_patch16_224.in1k'),
    ),
    neck=dict(in_channels=300),
)
