"""Mask R-CNN with MSVMamba-N, FPN, 3x with multi-scale crops, COCO.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191, the same settings as VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Backbone: download by hand, `visionssm info msvmamba_nano` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_msvmamba-nano_fpn_ms-crop-3x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_ms-crop-3x.py'

model = dict(
    backbone=dict(
        model_name='msvmamba_nano',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='msvmamba_nano.in1k'),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
