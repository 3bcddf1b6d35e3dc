"""Mask R-CNN with PlainMamba-L1, FPN, 1x, COCO.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d,
    downstream/mmdetection/plain_mamba_det_configs/maskrcnn/l1_maskrcnn_1x.py
Reported: box AP 44.1, mask AP 39.1, by the authors; not reproduced here
Checkpoint: https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/detection/maskrcnn/l1_1x.pth
Command, 8 GPUs with 2 images each:
    torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_plainmamba-l1_fpn_1x_coco --launcher pytorch
Scoring the checkpoint:
    python tools/test_mm.py mask-rcnn_plainmamba-l1_fpn_1x_coco plainmamba_l1.mask_rcnn_1x_coco
"""

_base_ = './_base_/mask-rcnn_1x.py'

model = dict(
    backbone=dict(
        model_name='plainmamba_l1',
        adapter=dict(num_heads=6),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='plainmamba_l1.in1k'),
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)
