"""MobileMamba under Mask R-CNN, 12 epochs. Maps begin at stride 16: the neck adds finer ones.

Source: arXiv:2411.15941; lewandofskee/MobileMamba@0980f48a
"""

_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './settings.py']

model = dict(
    backbone=_base_.frozen_norms,
    neck=[
        dict(type='FPN', in_channels=[200, 376, 448], out_channels=256, num_outs=3),
        dict(type='visionssm.FinerLevels', in_channels=256, levels=2),
    ],
)
train_dataloader = dict(batch_size=4)
optim_wrapper = _base_.adamw
param_scheduler = _base_.cosine
