"""UPerNet with MSVMamba-S (v3), 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.14174; YuHengsss/MSVMamba@fca4a391 has no configs: settings of VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_msvmambav3-small_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='msvmambav3_small',
        out_norm=True,
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='msvmambav3_small.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
