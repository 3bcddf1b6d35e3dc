"""PlainMamba in a ViT-Adapter under Mask R-CNN, 12 epochs."""

_base_ = ['../../_base_/mask-rcnn_1x.py', './settings.py']

model = dict(
    backbone=dict(_delete_=True, type='visionssm.Backbone', init_cfg=dict(type='Pretrained')),
    neck=dict(norm_cfg=_base_.syncbn),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=_base_.syncbn)),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
