"""Spatial-Mamba under UPerNet, 160k iterations: the settings of VMamba.

Source: arXiv:2410.15091; EdwardChasel/Spatial-Mamba@71221ebf
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(backbone=dict(out_norm=True))
