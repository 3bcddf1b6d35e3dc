"""What MobileMamba's detectors share: 8 GPUs with 4 images each, and a rate that falls along a cosine from epoch 6 on.

Source: arXiv:2411.15941; lewandofskee/MobileMamba@0980f48a. What the rate falls to is not known; here it is 0.
"""

custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

frozen_norms = dict(
    _delete_=True, type='visionssm.Backbone', out_indices=(0, 1, 2), norm_eval=True, init_cfg=dict(type='Pretrained')
)
adamw = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
cosine = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', begin=6, end=12, T_max=6, by_epoch=True, convert_to_iter_based=True),
]
