"""Mask R-CNN with MambaOut-Tiny, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2405.07992, section 4.3, for 12 epochs; 36 as VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_mambaout-tiny_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='mambaout_tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_tiny.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
optim_wrapper = dict(type='AmpOptimWrapper')
