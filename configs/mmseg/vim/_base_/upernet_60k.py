"""Vim under UPerNet by the settings of its repository, 60k iterations on 4 GPUs with 8 images each.

Source: hustvl/Vim@dd0358a, seg/configs/vim/upernet
"""

_base_ = './upernet_160k.py'

max_iters = 60000
train_cfg = dict(max_iters=max_iters, val_interval=6000)
train_dataloader = dict(batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=max_iters, by_epoch=False),
]
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    constructor='visionssm.LayerDecayConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=0.92),
)
default_hooks = dict(checkpoint=dict(interval=6000))
