"""Mask R-CNN with PlainMamba-L3, FPN, 1x, COCO.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d,
    downstream/mmdetection/plain_mamba_det_configs/maskrcnn/l3_maskrcnn_1x.py
Reported: box AP 46.8, mask AP 41.2, by the authors; not reproduced here
Checkpoint: https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/detection/maskrcnn/l3_1x.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_plainmamba-l3_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_plainmamba-l3_fpn_1x_coco plainmamba_l3.mask_rcnn_1x_coco
"""

_base_ = './_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l3',
        adapter=dict(num_heads=8),
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l3.in1k'),
    ),
    neck=dict(in_channels=[448, 448, 448, 448]),
)
