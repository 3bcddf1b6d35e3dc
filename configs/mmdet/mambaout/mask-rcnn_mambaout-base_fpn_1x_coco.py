"""Mask R-CNN with MambaOut-Base, FPN, 1x, COCO.

Source: arXiv:2405.07992, section 4.3
Reported: box AP 47.4, mask AP 43.0, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_mambaout-base_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='mambaout_base',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_base.in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper')
