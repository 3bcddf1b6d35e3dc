"""VMamba under UPerNet.

Source: arXiv:2401.10166; MzeroMiko/VMamba@2ed52ead, segmentation/configs/vssm*/upernet_vssm_*.py
`vssm` is the first release (vanilla), `vssm1` the later ones, `tiny1` the tiny s2l5; s1l20 takes the settings of s2l15.
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(backbone=dict(out_norm=True))
