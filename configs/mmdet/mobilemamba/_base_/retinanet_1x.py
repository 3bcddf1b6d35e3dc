"""MobileMamba under RetinaNet, 12 epochs. Maps begin at stride 16: the neck adds finer ones.

Source: arXiv:2411.15941; lewandofskee/MobileMamba@0980f48a
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './settings.py']

model = dict(
    backbone=_base_.frozen_norms,
    neck=[
        dict(type='FPN', in_channels=[200, 376, 448], out_channels=256, num_outs=4, add_extra_convs='on_input'),
        dict(type='visionssm.FinerLevels', in_channels=256, levels=1),
    ],
)
train_dataloader = dict(batch_size=4)
optim_wrapper = _base_.adamw
param_scheduler = _base_.cosine
