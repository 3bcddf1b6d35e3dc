"""UPerNet with MSVMamba-N, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191, the same settings as VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Backbone: download by hand, `visionssm info msvmamba_nano` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_msvmamba-nano_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='msvmamba_nano',
        out_norm=True,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='msvmamba_nano.in1k'),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
