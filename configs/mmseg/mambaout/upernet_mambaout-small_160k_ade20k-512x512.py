"""UPerNet with MambaOut-Small, 160k iterations, ADE20K at 512x512.

Source: arXiv:2405.07992, section 4.4
Reported: mIoU 49.5, multi-scale mIoU 50.6, by the authors; not reproduced here
Checkpoint: none published
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_mambaout-small_160k_ade20k-512x512 --launcher pytorch
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='mambaout_small',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='mambaout_small.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
