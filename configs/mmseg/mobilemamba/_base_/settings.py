"""What MobileMamba's segmenters share, on ADE20K at 512x512 with 8 images per GPU.

Source: arXiv:2411.15941; lewandofskee/MobileMamba@0980f48a. The rate is stated for
Semantic FPN; the weight decay is that of the detectors.
"""

custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

backbone = dict(_delete_=True, type='visionssm.Backbone', out_indices=(0, 1, 2), init_cfg=dict(type='Pretrained'))
last = dict(in_channels=448, in_index=2, channels=256)
middle = dict(in_channels=376, in_index=1, channels=256)
adamw = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
