"""Mask R-CNN with MSVMamba-M, FPN, 1x, COCO.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191, the same settings as VMamba
Reported: box AP 43.8, mask AP 39.9, by the authors; not reproduced here
Checkpoint: to download by hand: https://drive.google.com/drive/folders/12CrNAGBalU0yoQcQgPTGO5lM397Jc4La
Backbone: download by hand, `visionssm info msvmamba_micro` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_msvmamba-micro_fpn_1x_coco --launcher pytorch
"""

_base_ = '../_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='msvmamba_micro',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='msvmamba_micro.in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
