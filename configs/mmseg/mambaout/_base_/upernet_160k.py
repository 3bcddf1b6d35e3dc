"""MambaOut under UPerNet.

Source: arXiv:2405.07992, section 4.4
"""

_base_ = '../../_base_/upernet_160k.py'
optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=1e-4))
