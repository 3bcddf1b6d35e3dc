"""Mask R-CNN with PlainMamba-L3, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2403.17695; ours: upstream trains 12 epochs only
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_plainmamba-l3_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = './_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        adapter=dict(num_heads=8),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l3.in1k'),
    ),
    neck=dict(in_channels=[448, 448, 448, 448]),
)
