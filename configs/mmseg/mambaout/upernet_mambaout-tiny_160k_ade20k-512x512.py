"""UPerNet with MambaOut-Tiny, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.07992, section 4.4
Reported: mIoU 47.4, multi-scale mIoU 48.6, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_mambaout-tiny_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='mambaout_tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_tiny.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
