"""LBVim under UPerNet: all maps of stride 16, no neck; sliding windows when testing.

The blocks have LayerNorm instead of the classifier's RMSNorm, as upstream has it; their biases start at 0.

Source: arXiv:2506.15976; cvlab-stonybrook/LBMamba@5215551, segmentation/configs/lbmamba
"""

_base_ = '../../_base_/upernet_160k.py'
model = dict(
    backbone=dict(
        out_indices=(5, 11, 17, 23),
        out_norm=True,
        img_size=512,
        features='mixer',
        norm_layer='layernorm',
        drop_path_rate=0.1,
    ),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
