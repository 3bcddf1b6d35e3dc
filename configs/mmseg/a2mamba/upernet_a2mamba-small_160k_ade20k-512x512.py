"""UPerNet with A2Mamba-S, 160k iterations, ADE20K at 512x512.

Source: arXiv:2507.16624; schedule as VMamba, drop path as in classification
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_a2mamba-small_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='a2mamba_small',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='a2mamba_small.in1k'),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
