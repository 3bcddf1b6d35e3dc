"""GroupMamba under UPerNet: schedule and drop path of VMamba.

Source: arXiv:2407.13772
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(backbone=dict(out_norm=True))
