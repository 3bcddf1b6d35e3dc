"""Mask R-CNN with VMamba-B (s2l15), FPN, 1x, COCO.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, detection/configs/vssm1/mask_rcnn_vssm_fpn_coco_base.py
Reported: box AP 49.2, mask AP 44.1, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_base_epoch_11.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-base-s2l15_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_vmamba-base-s2l15_fpn_1x_coco vmamba_base_s2l15.mask_rcnn_1x_coco
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='vmamba_base_s2l15',
        out_norm=True,
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_base_s2l15.in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
