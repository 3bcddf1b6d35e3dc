"""Mask R-CNN with GroupMamba-T, FPN, 1x, COCO.

Source: arXiv:2407.13772; schedule and drop path as VMamba
Reported: box AP 47.6, mask AP 42.9 (read in a summary of the paper), by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_groupmamba-tiny_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='groupmamba_tiny',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='groupmamba_tiny.dist_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 348, 448]),
)
