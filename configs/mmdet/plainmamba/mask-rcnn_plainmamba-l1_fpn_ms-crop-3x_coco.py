"""Mask R-CNN with PlainMamba-L1, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2403.17695; ours: upstream trains 12 epochs only
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_plainmamba-l1_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l1',
        adapter=dict(num_heads=6),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l1.in1k'),
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)
