"""VSSD under UPerNet, 160k iterations: the settings of VMamba.

Source: arXiv:2407.18559; YuHengsss/VSSD@87b753b3
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(backbone=dict(out_norm=True))
