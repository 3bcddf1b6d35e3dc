"""Mask R-CNN with VMamba-B, first release, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead,
    detection/configs/vssm/mask_rcnn_vssm_fpn_coco_base with its 3x schedule
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-vanilla-base_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_base',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_vanilla_base.in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
