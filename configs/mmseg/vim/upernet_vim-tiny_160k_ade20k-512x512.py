"""UPerNet with Vim-Ti, 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.09417, appendix B; model as in hustvl/Vim@dd0358a, seg/configs/vim/upernet
Reported: mIoU 41.0, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vim-tiny_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = './_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vim_tiny_patch16_224',
        init_cfg=dict(type='Pretrained', checkpoint='vim_tiny_patch16_224.in1k'),
    ),
    neck=dict(in_channels=192),
    decode_head=dict(in_channels=[192, 192, 192, 192], channels=192),
    auxiliary_head=dict(in_channels=192),
)
