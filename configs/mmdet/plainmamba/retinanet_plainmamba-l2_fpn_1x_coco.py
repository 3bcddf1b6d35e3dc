"""RetinaNet with PlainMamba-L2, FPN, 1x, COCO.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d,
    downstream/mmdetection/plain_mamba_det_configs/retinanet/l2_retinanet_1x.py
Reported: box AP 43.9, by the authors; not reproduced here
Checkpoint: https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/detection/retinanet/l2_1x.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py retinanet_plainmamba-l2_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py retinanet_plainmamba-l2_fpn_1x_coco plainmamba_l2.retinanet_1x_coco
"""

_base_ = './_base_/retinanet_1x.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l2',
        adapter=dict(num_heads=6),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l2.in1k'),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
