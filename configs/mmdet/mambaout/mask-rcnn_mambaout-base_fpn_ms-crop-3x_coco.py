"""Mask R-CNN with MambaOut-Base, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2405.07992, section 4.3, for 12 epochs; 36 as VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_mambaout-base_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='mambaout_base',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_base.in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper')
