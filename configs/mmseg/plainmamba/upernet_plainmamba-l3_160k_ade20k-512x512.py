"""UPerNet with PlainMamba-L3, 160k iterations, ADE20K at 512x512.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d,
    downstream/mmsegmentation/plain_mamba_seg_configs/l3_upernet.py
Reported: mIoU 49.1, by the authors; not reproduced here
Checkpoint: https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/segmentation/l3_upernet.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_plainmamba-l3_160k_ade20k-512x512 --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py upernet_plainmamba-l3_160k_ade20k-512x512 plainmamba_l3.upernet_160k_ade20k
"""

_base_ = './_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        out_indices=(8, 17, 26, 35),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l3.in1k'),
    ),
    decode_head=dict(in_channels=[448, 448, 448, 448]),
    auxiliary_head=dict(in_channels=448),
)
