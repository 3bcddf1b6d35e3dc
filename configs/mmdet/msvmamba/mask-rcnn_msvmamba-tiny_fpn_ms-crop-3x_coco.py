"""Mask R-CNN with MSVMamba-T, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191, the same settings as VMamba
Reported: box AP 48.3, mask AP 43.2, by the authors; not reproduced here
Checkpoint: to download by hand: https://drive.google.com/drive/folders/1dK1qFjaU8GmqvsmMr1mgppNJlNacHPtG
Backbone: download by hand, `visionssm info msvmamba_tiny` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_msvmamba-tiny_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='msvmamba_tiny',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='msvmamba_tiny.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
