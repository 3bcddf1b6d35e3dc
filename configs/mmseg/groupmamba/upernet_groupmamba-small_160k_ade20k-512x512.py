"""UPerNet with GroupMamba-S, 160k iterations, ADE20K at 512x512.

Source: arXiv:2407.13772; schedule and drop path as VMamba
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_groupmamba-small_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='groupmamba_small',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='groupmamba_small.dist_in1k'),
    ),
    decode_head=dict(in_channels=[64, 128, 348, 512]),
    auxiliary_head=dict(in_channels=348),
)
