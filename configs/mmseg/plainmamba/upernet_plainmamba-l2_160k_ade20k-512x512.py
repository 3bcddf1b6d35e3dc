"""UPerNet with PlainMamba-L2, 160k iterations, ADE20K at 512x512.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d,
    downstream/mmsegmentation/plain_mamba_seg_configs/l2_upernet.py
Reported: mIoU 46.8, by the authors; not reproduced here
Checkpoint: https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/segmentation/l2_upernet.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py upernet_plainmamba-l2_160k_ade20k-512x512 --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py upernet_plainmamba-l2_160k_ade20k-512x512 plainmamba_l2.upernet_160k_ade20k
"""

_base_ = './_base_/upernet_160k.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l2',
        out_indices=(5, 11, 17, 23),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l2.in1k'),
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
