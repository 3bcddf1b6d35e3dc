"""Cascade Mask R-CNN with A2Mamba-T, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2507.16624 (its abstract compares A2Mamba-S with MambaVision-B); settings of Swin and ConvNeXt
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py cascade-mask-rcnn_a2mamba-tiny_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/cascade-mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='a2mamba_tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='a2mamba_tiny.in1k'),
    ),
    neck=dict(in_channels=[48, 96, 256, 448]),
)
