"""UPerNet with VMamba-B (s2l15), 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead,
    segmentation/configs/vssm1/upernet_vssm_4xb4-160k_ade20k-512x512_base.py
Reported: mIoU 51.0, multi-scale mIoU 51.6, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vmamba-base-s2l15_160k_ade20k-512x512 --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py upernet_vmamba-base-s2l15_160k_ade20k-512x512 vmamba_base_s2l15.upernet_160k_ade20k
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vmamba_base_s2l15',
        out_norm=True,
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_base_s2l15.in1k'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
