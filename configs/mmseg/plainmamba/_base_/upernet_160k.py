"""PlainMamba under UPerNet: all maps of stride 16, no neck, images padded to multiples of 32 when testing.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d, downstream/mmsegmentation/plain_mamba_seg_configs
"""

_base_ = '../../_base_/upernet_160k.py'

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    backbone=dict(out_norm=True),
    auxiliary_head=dict(in_index=3),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            '.A_log': dict(decay_mult=0.0),
            '.D': dict(decay_mult=0.0),
            '.direction_B': dict(decay_mult=0.0),
        }
    )
)
