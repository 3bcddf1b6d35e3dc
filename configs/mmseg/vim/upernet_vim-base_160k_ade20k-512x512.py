"""UPerNet with Vim-B, 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.09417, appendix B; model as in hustvl/Vim@dd0358a, seg/configs/vim/upernet
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vim-base_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = './_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vim_base_patch16_224',
        rotary=True,
        features='stream',
        init_cfg=dict(type='Pretrained', checkpoint='vim_base_patch16_224.in1k'),
    ),
    neck=dict(in_channels=768),
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=768),
    auxiliary_head=dict(in_channels=768),
)
