"""Mamba-Reg (Mamba-R): Vision Mamba Also Needs Registers, https://arxiv.org/abs/2405.14858 (CVPR 2025).

Official: https://github.com/wangf3014/Mamba-Reg at 0f7c2da9d8f3b03243a6242a0690bd72b54aa2c1, no licence stated; nothing
here is from its code.

Vim with registers: class tokens spread evenly among the patches, all of which the classifier sees.

Kept, as the published weights depend on it: position embeddings of the patches are added before registers come between
them, and registers have position embeddings of their own.
Differs: any image size works, rectangles included (upstream asserts one size); registers go where the new number of
patches puts them.
"""

from timm.models import register_model

from .builder import build, family_cfgs
from .tokens import TokenMamba

__all__ = ['MambaReg']


class MambaReg(TokenMamba):
    """Mamba-Reg: its variants give `num_cls_tokens` registers, `cls_reduce` and `cls_pos_embed=True`."""


checkpoint_filter_fn = MambaReg.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'mambareg',
    {'test_mambareg': {'input_size': (3, 96, 96)}},
    crop_pct=1.0,
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_mambareg(variant: str, pretrained: bool, args: dict, kwargs: dict) -> MambaReg:
    args = {'num_cls_tokens': 12, 'cls_pos_embed': True, **args}
    return build(MambaReg, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def mambareg_tiny_patch16_224(pretrained: bool = False, **kwargs) -> MambaReg:
    """Mamba-Reg-Ti: 9 M parameters; no weights were published."""
    return _create_mambareg('mambareg_tiny_patch16_224', pretrained, {'embed_dim': 192}, kwargs)


@register_model
def mambareg_small_patch16_224(pretrained: bool = False, **kwargs) -> MambaReg:
    """Mamba-Reg-S: 28 M parameters."""
    args = {'embed_dim': 384, 'cls_reduce': 2}
    return _create_mambareg('mambareg_small_patch16_224', pretrained, args, kwargs)


@register_model
def mambareg_base_patch16_224(pretrained: bool = False, **kwargs) -> MambaReg:
    """Mamba-Reg-B: 99 M parameters."""
    args = {'embed_dim': 768, 'cls_reduce': 4}
    return _create_mambareg('mambareg_base_patch16_224', pretrained, args, kwargs)


@register_model
def mambareg_large_patch16_224(pretrained: bool = False, **kwargs) -> MambaReg:
    """Mamba-Reg-L: 48 blocks, 341 M parameters, 16 registers."""
    args = {'embed_dim': 1024, 'depth': 48, 'num_cls_tokens': 16, 'cls_reduce': 8}
    return _create_mambareg('mambareg_large_patch16_224', pretrained, args, kwargs)


@register_model
def test_mambareg(pretrained: bool = False, **kwargs) -> MambaReg:
    """For tests: under 1 M parameters."""
    args = {'embed_dim': 64, 'depth': 4, 'num_cls_tokens': 4, 'cls_reduce': 2}
    return _create_mambareg('test_mambareg', pretrained, args, kwargs)
