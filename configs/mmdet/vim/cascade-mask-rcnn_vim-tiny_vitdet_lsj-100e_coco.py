"""Cascade Mask R-CNN with Vim-Ti in the manner of ViTDet, 100 epochs, COCO.

Source: arXiv:2401.09417, appendix B; hustvl/Vim@dd0358a, det (detectron2; the paper says 380k iterations)
Reported: box AP 45.7, mask AP 39.2, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 8 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py cascade-mask-rcnn_vim-tiny_vitdet_lsj-100e_coco --launcher pytorch
"""

_base_ = './_base_/vitdet_lsj-100e.py'

model = dict(
    backbone=dict(
        model_name='vim_tiny_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='vim_tiny_patch16_224.in1k'),
    ),
    neck=dict(in_channels=192),
)
