"""UPerNet with VMamba-T, first release, 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead,
    segmentation/configs/vssm/upernet_vssm_4xb4-160k_ade20k-512x512_tiny.py
Reported: mIoU 47.3, multi-scale mIoU 48.3, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v0seg/vssmtiny_upernet_4xb4-160k_ade20k-512x512_iter_160000.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vmamba-vanilla-tiny_160k_ade20k-512x512 --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py upernet_vmamba-vanilla-tiny_160k_ade20k-512x512 vmamba_vanilla_tiny.upernet_160k_ade20k
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_tiny',
        out_norm=True,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_vanilla_tiny.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
