"""UPerNet with VMamba-T (s2l5), 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead,
    segmentation/configs/vssm1/upernet_vssm_4xb4-160k_ade20k-512x512_tiny1.py
Reported: mIoU 48.3, multi-scale mIoU 48.6, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_iter_160000.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vmamba-tiny-s2l5_160k_ade20k-512x512 --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py upernet_vmamba-tiny-s2l5_160k_ade20k-512x512 vmamba_tiny_s2l5.upernet_160k_ade20k
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vmamba_tiny_s2l5',
        out_norm=True,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_tiny_s2l5.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
