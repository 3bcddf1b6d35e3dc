"""UPerNet with MambaOut-Kobe, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.07992, section 4.4
Reported: none found for this model and schedule
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_mambaout-kobe_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='mambaout_kobe',
        drop_path_rate=0.025,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_kobe.in1k'),
    ),
    decode_head=dict(in_channels=[48, 96, 192, 288]),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
