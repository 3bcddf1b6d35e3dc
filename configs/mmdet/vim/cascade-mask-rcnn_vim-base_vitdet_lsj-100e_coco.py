"""Cascade Mask R-CNN with Vim-B in the manner of ViTDet, 100 epochs, COCO.

Source: arXiv:2401.09417, appendix B; hustvl/Vim@dd0358a, det (detectron2; the paper says 380k iterations)
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 8 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py cascade-mask-rcnn_vim-base_vitdet_lsj-100e_coco --launcher pytorch
"""

_base_ = './_base_/vitdet_lsj-100e.py'

model = dict(
    backbone=dict(
        model_name='vim_base_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='vim_base_patch16_224.in1k'),
    ),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.837))
