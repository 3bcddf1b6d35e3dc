"""UPerNet with VMamba-S (s1l20), 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead has no such config: settings of s2l15
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vmamba-small-s1l20_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vmamba_small_s1l20',
        out_norm=True,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_small_s1l20.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
