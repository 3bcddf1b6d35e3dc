"""UPerNet with MSVMamba-M, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191, the same settings as VMamba
Reported: mIoU 45.1, multi-scale mIoU 45.4, by the authors; not reproduced here
Checkpoint: to download by hand: https://drive.google.com/drive/folders/1naZHL4mwTchllAE001SsyZ_z4y_JRF0s
Backbone: download by hand, `visionssm info msvmamba_micro` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_msvmamba-micro_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='msvmamba_micro',
        out_norm=True,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='msvmamba_micro.in1k'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
