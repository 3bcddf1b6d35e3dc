"""UPerNet with GroupMamba-T, 160k iterations, ADE20K at 512x512.

Source: arXiv:2407.13772; schedule and drop path as VMamba
Reported: mIoU 48.6, multi-scale mIoU 49.2 (read in a summary of the paper), by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_groupmamba-tiny_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='groupmamba_tiny',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='groupmamba_tiny.dist_in1k'),
    ),
    decode_head=dict(in_channels=[64, 128, 348, 448]),
    auxiliary_head=dict(in_channels=348),
)
