"""Mask R-CNN with VMamba-T, first release, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, detection/configs/vssm/mask_rcnn_vssm_fpn_coco_tiny_ms_3x.py
Reported: box AP 48.5, mask AP 43.2, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmtiny_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-vanilla-tiny_fpn_ms-crop-3x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_vmamba-vanilla-tiny_fpn_ms-crop-3x_coco vmamba_vanilla_tiny.mask_rcnn_3x_coco
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_tiny',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_vanilla_tiny.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
