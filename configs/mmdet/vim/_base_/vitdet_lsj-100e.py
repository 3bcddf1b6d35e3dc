"""Vim in the manner of ViTDet."""

_base_ = '../../_base_/vitdet_lsj-100e.py'

model = dict(
    backbone=dict(
        out_indices=(23,),
        img_size=1024,
        class_token=False,
        rotary=True,
        drop_path_rate=0.1,
    )
)
