"""VCMamba under Semantic FPN, 40k iterations on ADE20K at 512x512, 4 images per GPU.

Source: arXiv:2509.04669; Wertyuui345/VCMamba@f8795a00. The stem has another activation than the classifier that it
starts from.
"""

_base_ = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'

custom_imports = dict(imports=['visionssm.openmmlab'], allow_failed_imports=False)

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='visionssm.Backbone',
        out_indices=(0, 1, 2, 3),
        img_size=512,
        stem_act='gelu',
        init_cfg=dict(type='Pretrained'),
    ),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False)]
