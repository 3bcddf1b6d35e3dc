"""Mask R-CNN with VMamba-S (s2l15), FPN, 1x, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_small.py
Reported: box AP 48.7, mask AP 43.7, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_small_epoch_11.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-small-s2l15_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_vmamba-small-s2l15_fpn_1x_coco vmamba_small_s2l15.mask_rcnn_1x_coco
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_small_s2l15',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_small_s2l15.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
