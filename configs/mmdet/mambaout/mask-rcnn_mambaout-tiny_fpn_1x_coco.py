"""Mask R-CNN with MambaOut-Tiny, FPN, 1x, COCO.

Source: arXiv:2405.07992, section 4.3
Reported: box AP 45.1, mask AP 41.0, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_mambaout-tiny_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='mambaout_tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_tiny.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
optim_wrapper = dict(type='AmpOptimWrapper')
