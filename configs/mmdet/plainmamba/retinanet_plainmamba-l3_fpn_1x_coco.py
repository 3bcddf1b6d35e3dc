"""RetinaNet with PlainMamba-L3, FPN, 1x, COCO.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d,
    downstream/mmdetection/plain_mamba_det_configs/retinanet/l3_retinanet_1x.py
Reported: box AP 44.8, by the authors; not reproduced here
Checkpoint: https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/detection/retinanet/l3_1x.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py retinanet_plainmamba-l3_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py retinanet_plainmamba-l3_fpn_1x_coco plainmamba_l3.retinanet_1x_coco
"""

_base_ = './_base_/retinanet_1x.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        adapter=dict(num_heads=8),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l3.in1k'),
    ),
    neck=dict(in_channels=[448, 448, 448, 448]),
)
