"""Mask R-CNN with MambaOut-Small, FPN, 1x, COCO.

Source: arXiv:2405.07992, section 4.3
Reported: box AP 47.4, mask AP 42.7, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_mambaout-small_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='mambaout_small',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_small.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
optim_wrapper = dict(type='AmpOptimWrapper')
