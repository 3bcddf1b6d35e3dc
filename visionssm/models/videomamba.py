"""The image model of VideoMamba: State Space Model for Efficient Video Understanding, arXiv:2403.06977 (ECCV 2024).

Official: https://github.com/OpenGVLab/VideoMamba at f3427e42cb8453a523aec3a6f86d57b5bc1de5c3, `videomamba/image_sm`,
Apache-2.0. Its video models start from these weights.

Kept, as the published weights depend on it: the class token stands first, and the two directions are added up, not
averaged as in Vim. Kept for training: all linear layers start alike, step projections included.
Differs: any image size works, rectangles included (upstream asserts one size).
"""

from timm.models import register_model

from .builder import build, family_cfgs
from .tokens import TokenMamba

__all__ = ['VideoMamba']


class VideoMamba(TokenMamba):
    """VideoMamba for images: its variants give `cls_position='first'`, `average=False` and `init='linear'`."""


checkpoint_filter_fn = VideoMamba.checkpoint_filter_fn  # where timm keeps it


_SIZES = {
    'tiny': {'embed_dim': 192},
    'small': {'embed_dim': 384},
    'middle': {'embed_dim': 576, 'depth': 32},
    'base': {'embed_dim': 768},
}
default_cfgs = family_cfgs(
    'videomamba',
    {
        'test_videomamba': {'input_size': (3, 96, 96)},
        **{
            f'videomamba_{size}_patch16_{side}': {'input_size': (3, side, side)}
            for size in ('tiny', 'small', 'middle')
            for side in (448, 576)
        },
    },
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_videomamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> VideoMamba:
    args = {'cls_position': 'first', 'average': False, 'init': 'linear', **args}
    return build(VideoMamba, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def videomamba_tiny_patch16_224(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-Ti: 7 M parameters."""
    return _create_videomamba('videomamba_tiny_patch16_224', pretrained, _SIZES['tiny'], kwargs)


@register_model
def videomamba_small_patch16_224(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-S: 26 M parameters."""
    return _create_videomamba('videomamba_small_patch16_224', pretrained, _SIZES['small'], kwargs)


@register_model
def videomamba_middle_patch16_224(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-M: 32 blocks, 74 M parameters."""
    return _create_videomamba('videomamba_middle_patch16_224', pretrained, _SIZES['middle'], kwargs)


@register_model
def videomamba_base_patch16_224(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-B: 98 M parameters."""
    return _create_videomamba('videomamba_base_patch16_224', pretrained, _SIZES['base'], kwargs)


@register_model
def videomamba_tiny_patch16_448(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-Ti for images of 448."""
    args = {**_SIZES['tiny'], 'img_size': 448}
    return _create_videomamba('videomamba_tiny_patch16_448', pretrained, args, kwargs)


@register_model
def videomamba_small_patch16_448(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-S for images of 448."""
    args = {**_SIZES['small'], 'img_size': 448}
    return _create_videomamba('videomamba_small_patch16_448', pretrained, args, kwargs)


@register_model
def videomamba_middle_patch16_448(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-M for images of 448."""
    args = {**_SIZES['middle'], 'img_size': 448}
    return _create_videomamba('videomamba_middle_patch16_448', pretrained, args, kwargs)


@register_model
def videomamba_tiny_patch16_576(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-Ti for images of 576."""
    args = {**_SIZES['tiny'], 'img_size': 576}
    return _create_videomamba('videomamba_tiny_patch16_576', pretrained, args, kwargs)


@register_model
def videomamba_small_patch16_576(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-S for images of 576."""
    args = {**_SIZES['small'], 'img_size': 576}
    return _create_videomamba('videomamba_small_patch16_576', pretrained, args, kwargs)


@register_model
def videomamba_middle_patch16_576(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-M for images of 576."""
    args = {**_SIZES['middle'], 'img_size': 576}
    return _create_videomamba('videomamba_middle_patch16_576', pretrained, args, kwargs)


@register_model
def test_videomamba(pretrained: bool = False, **kwargs) -> VideoMamba:
    """For tests: under 1 M parameters."""
    return _create_videomamba('test_videomamba', pretrained, {'embed_dim': 64, 'depth': 4}, kwargs)
