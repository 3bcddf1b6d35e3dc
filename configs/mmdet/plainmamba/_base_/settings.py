"""What PlainMamba's detectors share.

Source: arXiv:2403.17695; ChenhongyiYang/PlainMamba@0975a1d, downstream/mmdetection/plain_mamba_det_configs/template
"""

syncbn = dict(type='SyncBN', requires_grad=True)
no_decay = {
    'norm': dict(decay_mult=0.0),
    'bias': dict(decay_mult=0.0),
    'pos_embed': dict(decay_mult=0.0),
    'level_embed': dict(decay_mult=0.0),
    '.A_log': dict(decay_mult=0.0),
    '.D': dict(decay_mult=0.0),
    '.direction_B': dict(decay_mult=0.0),
}
