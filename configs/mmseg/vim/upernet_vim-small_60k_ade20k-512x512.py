"""UPerNet with Vim-S, 60k iterations, ADE20K at 512x512.

Source: hustvl/Vim@dd0358a, seg/configs/vim/upernet/upernet_vim_small_24_512_slide_60k.py
Reported: none found for this model and schedule
Checkpoint: none published
Command, 4 GPUs with 8 images each:
    torchrun --nproc-per-node 4 tools/train_mm.py upernet_vim-small_60k_ade20k-512x512 --launcher pytorch
"""

_base_ = './_base_/upernet_60k.py'

model = dict(
    backbone=dict(
        model_name='vim_small_patch16_224',
        rotary=True,
        features='stream',
        init_cfg=dict(type='Pretrained', checkpoint='vim_small_patch16_224.in1k'),
    ),
    neck=dict(in_channels=384),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=384),
    auxiliary_head=dict(in_channels=384),
)
