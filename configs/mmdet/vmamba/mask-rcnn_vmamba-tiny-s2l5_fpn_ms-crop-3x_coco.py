"""Mask R-CNN with VMamba-T (s2l5), FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_tiny1_ms_3x.py
Reported: box AP 48.9, mask AP 43.7, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_tiny_ms_3x_epoch_36.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-tiny-s2l5_fpn_ms-crop-3x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_vmamba-tiny-s2l5_fpn_ms-crop-3x_coco vmamba_tiny_s2l5.mask_rcnn_3x_coco
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_tiny_s2l5',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_tiny_s2l5.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
