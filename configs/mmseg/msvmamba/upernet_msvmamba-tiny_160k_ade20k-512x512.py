"""UPerNet with MSVMamba-T, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@c3940191, the same settings as VMamba
Reported: mIoU 47.8, by the authors; not reproduced here
Checkpoint: to download by hand: https://drive.google.com/drive/folders/1FaFPFExDd_4goIlLjTR7fXsuMRr-vYoY
Backbone: download by hand, `visionssm info msvmamba_tiny` says where,
    and add --cfg-options model.backbone.init_cfg.checkpoint=FILE
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_msvmamba-tiny_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='msvmamba_tiny',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='msvmamba_tiny.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
