"""ShuffleMamba: Stochastic Layer-Wise Shuffle for Improving Vision Mamba Training, arXiv:2408.17081 (ICML 2025).

Official: https://github.com/huangzizheng01/ShuffleMamba at 0df405f5aa1d39a4a0be21da165935e30a12688b, no licence stated;
nothing here is from its code. No weights were published.

The plain models: Vim with the class token in front and, for training, all linear layers started alike. What the paper
is about is a way to train these and other models of one resolution: `visionssm.train.shuffle`, the recipe's key
`shuffle_layers`. Its second kind of model is Mamba-Reg, trained so.
"""

from timm.models import register_model

from .builder import build, family_cfgs
from .tokens import TokenMamba

__all__ = ['ShuffleMamba']


class ShuffleMamba(TokenMamba):
    """ShuffleMamba's plain model: its variants give `cls_position='first'` and `init='linear'`."""


checkpoint_filter_fn = ShuffleMamba.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'shufflemamba',
    {'test_shufflemamba': {'input_size': (3, 96, 96)}},
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_shufflemamba(variant: str, pretrained: bool, args: dict, kwargs: dict) -> ShuffleMamba:
    args = {'cls_position': 'first', 'init': 'linear', **args}
    return build(ShuffleMamba, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def shufflemamba_tiny_patch16_224(pretrained: bool = False, **kwargs) -> ShuffleMamba:
    """ShuffleMamba-Ti: 7 M parameters; no weights were published."""
    return _create_shufflemamba('shufflemamba_tiny_patch16_224', pretrained, {'embed_dim': 192}, kwargs)


@register_model
def shufflemamba_middle_patch16_224(pretrained: bool = False, **kwargs) -> ShuffleMamba:
    """ShuffleMamba-M: 32 blocks with LayerNorm, 74 M parameters; no weights were published."""
    args = {'embed_dim': 576, 'depth': 32, 'norm_layer': 'layernorm'}
    return _create_shufflemamba('shufflemamba_middle_patch16_224', pretrained, args, kwargs)


@register_model
def test_shufflemamba(pretrained: bool = False, **kwargs) -> ShuffleMamba:
    """For tests: under 1 M parameters."""
    args = {'embed_dim': 64, 'depth': 4, 'norm_layer': 'layernorm'}
    return _create_shufflemamba('test_shufflemamba', pretrained, args, kwargs)
