"""PlainMamba in a ViT-Adapter under RetinaNet, 12 epochs."""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './settings.py']

find_unused_parameters = True  # RetinaNet starts at stride 8: the adapter's finest map feeds nothing
custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='visionssm.Backbone', init_cfg=dict(type='Pretrained')),
    neck=dict(add_extra_convs='on_output', norm_cfg=_base_.syncbn),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
    clip_grad=dict(max_norm=35, norm_type=2),
)
