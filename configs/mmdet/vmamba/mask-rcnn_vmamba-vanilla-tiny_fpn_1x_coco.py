"""Mask R-CNN with VMamba-T, first release, FPN, 1x, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, detection/configs/vssm/mask_rcnn_vssm_fpn_coco_tiny.py
Reported: box AP 46.5, mask AP 42.1, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-vanilla-tiny_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_vmamba-vanilla-tiny_fpn_1x_coco vmamba_vanilla_tiny.mask_rcnn_1x_coco
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_tiny',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_vanilla_tiny.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
