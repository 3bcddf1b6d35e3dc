"""Vision Mamba (Vim), https://arxiv.org/abs/2401.09417 (ICML 2024).

Official: https://github.com/hustvl/Vim at dd0358ad1e42701f22afbefa0717cc8825cf9f45, Apache-2.0.

Kept, as the published weights depend on it: the class token stands in the middle of the sequence, and the average over
directions. Kept for training: directions after the first start with torch's default step projection and a zero bias.
Fixed: position embeddings are resampled around the middle class token (upstream cuts row 0 instead and leaves the class
row in the grid), and any image size works, rectangles included (upstream asserts one size, or a square). The rotary
option turns every patch and never the class token (upstream leaves token 0 alone where the count is odd, whatever it
is), and an image's whole height and width are the same turn at any size.
"""

from timm.models import register_model

from .builder import build, family_cfgs
from .tokens import RotaryMamba
from .tokens import resample_pos_embed as resample_pos_embed

__all__ = ['Vim']


class Vim(RotaryMamba):
    """Vision Mamba: patches with a class token in their middle, Mamba blocks that scan both ways.

    Upstream's segmentation and detection have no class token. `rotary` is for detection and for segmentation with
    Vim-S, `features='mixer'` for segmentation with Vim-Ti.
    """


checkpoint_filter_fn = Vim.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'vim',
    {'test_vim': {'input_size': (3, 96, 96)}},
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_vim(variant: str, pretrained: bool, args: dict, kwargs: dict) -> Vim:
    return build(Vim, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-Ti: 7 M parameters."""
    return _create_vim('vim_tiny_patch16_224', pretrained, {'embed_dim': 192}, kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-S: 26 M parameters."""
    return _create_vim('vim_small_patch16_224', pretrained, {'embed_dim': 384}, kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-B: 98 M parameters."""
    return _create_vim('vim_base_patch16_224', pretrained, {'embed_dim': 768}, kwargs)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-Ti+: patches every 8 pixels, 730 tokens, fine-tuned from Vim-Ti."""
    return _create_vim('vim_tiny_patch16_stride8_224', pretrained, {'embed_dim': 192, 'stride': 8}, kwargs)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs) -> Vim:
    """Vim-S+: patches every 8 pixels, 730 tokens, fine-tuned from Vim-S."""
    return _create_vim('vim_small_patch16_stride8_224', pretrained, {'embed_dim': 384, 'stride': 8}, kwargs)


@register_model
def vim_nano(pretrained: bool = False, **kwargs) -> Vim:
    """Not of the paper: trains on a CPU in minutes (for small images give `img_size=32, patch_size=4`)."""
    return _create_vim('vim_nano', pretrained, {'embed_dim': 96, 'depth': 4, 'd_state': 8}, kwargs)


@register_model
def test_vim(pretrained: bool = False, **kwargs) -> Vim:
    """For tests: under 1 M parameters."""
    return _create_vim('test_vim', pretrained, {'embed_dim': 64, 'depth': 4}, kwargs)
