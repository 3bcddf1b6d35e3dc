"""UPerNet with MambaOut-Base, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.07992, section 4.4
Reported: mIoU 49.6, multi-scale mIoU 51.0, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_mambaout-base_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='mambaout_base',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_base.in1k'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 768]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
