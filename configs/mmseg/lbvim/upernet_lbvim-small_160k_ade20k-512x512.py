"""UPerNet with LBVim-S, 160k iterations, ADE20K at 512x512.

Source: arXiv:2506.15976; cvlab-stonybrook/LBMamba@5215551, segmentation/configs/lbmamba
Reported: none found for this model and schedule
Checkpoint: none published
Backbone: download by hand, `visionssm info lbvim_small_patch16_224` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_lbvim-small_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = './_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='lbvim_small_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='lbvim_small_patch16_224.in1k'),
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
