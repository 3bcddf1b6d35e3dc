"""UPerNet with VMamba-B, first release, 160k iterations, ADE20K at 512x512.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead,
    segmentation/configs/vssm/upernet_vssm_4xb4-160k_ade20k-512x512_base.py
Reported: mIoU 50.0, multi-scale mIoU 51.3, by the authors; not reproduced here
Checkpoint: https://github.com/MzeroMiko/VMamba/releases/download/%23v0seg/vssmbase_upernet_4xb4-160k_ade20k-512x512_iter_128000.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_vmamba-vanilla-base_160k_ade20k-512x512 --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py upernet_vmamba-vanilla-base_160k_ade20k-512x512 vmamba_vanilla_base.upernet_160k_ade20k
"""

_base_ = '../_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='vmamba_vanilla_base',
        out_norm=True,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='vmamba_vanilla_base.in1k'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
