"""LBVim, of LBMamba: Locally Bi-directional Mamba, https://arxiv.org/abs/2506.15976 (TMLR).

Official: https://github.com/cvlab-stonybrook/LBMamba at 521555165f879530407ac007f7f1fc885dcd20a3, no licence stated;
nothing here is from its code.

Kept, as the published weights depend on it: the window of the local backward scan goes by the number of steps, as in
upstream's CUDA kernel, so that another image size may be another network (`local_window` fixes it).
Differs: upstream turns the sequence around after every block; here every other mixer walks backwards, which is the
same. Any image size works, rectangles included (upstream asserts one size).
"""

import re

import torch
from timm.layers import (
    calculate_drop_path_rates,
    trunc_normal_,
)
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import (
    STREAM_NORMS,
    FastLinears,
    Linear,
    MambaBlock,
    ScanSpec,
    StreamLayerNorm,
    StridedPatchEmbed,
    at_least_fp32,
    attention,
    check_image_size,
    resample_grid,
    window_by_length,
)
from visionssm.scans import get_scan, scan_order

from .builder import build, family_cfgs
from .isotropic import Isotropic, fit_pos_embed, init_mamba_stack
from .renames import rename

__all__ = ['LBVim', 'window_by_length']

torch.fx.wrap('at_least_fp32')
torch.fx.wrap('resample_grid')
torch.fx.wrap('scan_order')


class AttentionPool(FastLinears):
    """One learned query attends to the tokens (B, L, C); LayerNorm of what it reads, (B, C).

    Args:
        dim: Channels C.
        num_heads: Heads; they divide `dim`.

    Raises:
        ValueError: If they do not.

    Source: cvlab-stonybrook/LBMamba@5215551, head of `lbvim_528_patch16_224_atthead`.
    """

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f'num_heads is {num_heads!r}; allowed are divisors of the {dim} channels')
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.kv = Linear(dim, 2 * dim, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        trunc_normal_(self.latent, std=dim**-0.5)
        trunc_normal_(self.kv.weight, std=0.02)
        nn.init.zeros_(self.kv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pool tokens."""
        kv = self.kv(x).unflatten(2, (2, self.num_heads, -1))  # [B, L, 2, heads, C / heads]
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        q = self.latent.to(k.dtype).unflatten(2, (self.num_heads, -1)).transpose(1, 2).expand(x.shape[0], -1, -1, -1)
        x = attention(q, k, v)  # [B, heads, 1, C / heads]
        return self.norm(x.flatten(1))


class LBVim(Isotropic):
    """Vim with one scan per block that looks ahead within short windows; every other block walks backwards.

    Args:
        img_size: Image size (one side, or height and width) that the position embeddings are for.
        patch_size: Side of a patch.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: 'avg' (mean of the tokens), 'map' (attention pooling, with parameters) or '' (all tokens).
        embed_dim: Channels.
        depth: Blocks.
        d_state: States N per channel.
        d_conv: Width of the causal convolution.
        expand: Inner channels of the mixer over `embed_dim`.
        pool_heads: Heads of the attention pooling.
        local_window: Steps per window of the local backward scan; 0: no such scan; None: upstream's rule, 4 for walks
            of up to 128 steps, 8 up to 256, 16 beyond.
        norm_layer: 'rmsnorm', or 'layernorm' as in upstream's segmentation, which starts it from the former's weights
            and zero biases.
        features: What `forward_intermediates` gives: 'stream', or 'mixer' as in upstream's segmentation and detection:
            what the mixer of a block adds to the stream.
        scan: Scan order: name, dict, JSON string or `ScanOrder`. If it does not offer one direction, the model has as
            many sets of scan parameters as it has directions.
        dynamic_img_size: Take images of any size, resampling position embeddings in every forward.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    POOLS = ('avg', 'map', '')

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        pool_heads: int = 6,
        local_window: int | None = None,
        norm_layer: str = 'rmsnorm',
        features: str = 'stream',
        scan: ScanSpec = 'raster',
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        if norm_layer not in STREAM_NORMS:
            raise ValueError(f'norm_layer is {norm_layer!r}; allowed are {" and ".join(STREAM_NORMS)}')
        super().__init__(embed_dim, depth, patch_size, in_chans, num_classes, global_pool, features)
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 1)
        self.scan_directions = order.directions
        self.scan = order.to_json()
        self.patch_size = patch_size
        self.pool_heads = pool_heads
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = StridedPatchEmbed(img_size, patch_size, patch_size, in_chans, embed_dim, **dd)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim, **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        mixer_args = {
            'd_state': d_state,
            'd_conv': d_conv,
            'expand': expand,
            'scan': order,
            'local_window': local_window,
        }
        # upstream drops the branch that comes into the next block; the schedule is the plain one
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        norm = STREAM_NORMS[norm_layer]
        self.blocks = nn.ModuleList(
            MambaBlock(embed_dim, rate, {**mixer_args, 'reverse': i % 2 == 1}, norm, **dd)
            for i, rate in enumerate(rates)
        )
        self.norm = norm(embed_dim, eps=1e-5, **dd)
        self.attn_pool = self._make_pool(device, dtype)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes, device, dtype)
        init_mamba_stack(self)

    def _make_pool(self, device, dtype) -> nn.Module:
        if self.global_pool != 'map':
            return nn.Identity()
        return AttentionPool(self.embed_dim, self.pool_heads, device=device, dtype=dtype)

    @torch.jit.ignore
    def final_projection(self) -> nn.Module:
        """What reads the final norm."""
        return self.attn_pool.kv if self.global_pool == 'map' else self.head

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_image_size(x, self.patch_size, None if self.dynamic_img_size else self.patch_embed.img_size)
        x = self.patch_embed(x)
        _, height, width, _ = x.shape
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            size = [height, width]
            pos_embed = resample_grid(pos_embed, size, self.patch_embed.grid_size)
        x = at_least_fp32(self.pos_drop(x.flatten(1, 2) + pos_embed))
        return x, scan_order(self.scan, height, width, x)

    def _pool(self, x: Tensor) -> Tensor:
        if self.global_pool == 'avg':
            x = x.mean(1)
        elif self.global_pool == 'map':
            x = self.attn_pool(x)
        return x

    @torch.jit.ignore
    def _spatial(self, x: Tensor, height: int, width: int) -> Tensor:
        return x.unflatten(1, (height, width))

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As every model; attention pooling is made or removed as `global_pool` asks."""
        before = self.global_pool
        super().reset_classifier(num_classes, global_pool)
        if self.global_pool != before:
            like = self.pos_embed
            self.attn_pool = self._make_pool(like.device, like.dtype).train(self.training)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What upstream exempts beside 1-D parameters and biases, which timm's rule covers; `A_log` is decayed."""
        return {'pos_embed'}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'LBVim') -> dict[str, Tensor]:
        """Upstream names to ours, one tensor for one; position embeddings of another grid are resampled.

        Attention pooling is left out for a model that was built with another pooling. Biases that a LayerNorm model has
        and RMSNorm weights do not are zero.

        Raises:
            ValueError: If the grid that the position embeddings are for is not known.
        """
        state_dict = rename(state_dict, _RENAMES)
        if model.global_pool != 'map':
            state_dict = {name: x for name, x in state_dict.items() if not name.startswith('attn_pool.')}
        if isinstance(model.blocks[0].norm, StreamLayerNorm):
            norms = [name for name in state_dict if re.search(r'(^|^blocks\.\d+\.)norm\.weight$', name)]
            biases = {f'{name.removesuffix("weight")}bias': torch.zeros_like(state_dict[name]) for name in norms}
            state_dict = {**biases, **state_dict}
        return fit_pos_embed(state_dict, model)


_RENAMES = (
    (r'^backbone\.', ''),
    (r'^layers\.', 'blocks.'),
    (r'^norm_f\.', 'norm.'),
    (r'\.mixer\.(A_log|D|(?:conv1d|x_proj|dt_proj)\.\w+)$', r'.mixer.directions.0.\1'),
    (r'^head\.0\.post_norm\.', 'attn_pool.norm.'),
    (r'^head\.0\.', 'attn_pool.'),
    (r'^head\.1\.', 'head.'),
)


checkpoint_filter_fn = LBVim.checkpoint_filter_fn  # where timm keeps it


default_cfgs = family_cfgs(
    'lbvim',
    {'test_lbvim': {'input_size': (3, 96, 96)}},
    fixed_input_size=True,
    first_conv='patch_embed.proj',
    classifier='head',
)


def _create_lbvim(variant: str, pretrained: bool, args: dict, kwargs: dict) -> LBVim:
    return build(LBVim, variant, pretrained, levels=3, **{**args, **kwargs})


@register_model
def lbvim_tiny_patch16_224(pretrained: bool = False, **kwargs) -> LBVim:
    """LBVim-Ti: 6.4 M parameters."""
    return _create_lbvim('lbvim_tiny_patch16_224', pretrained, {'embed_dim': 192}, kwargs)


@register_model
def lbvim_300_patch16_224(pretrained: bool = False, **kwargs) -> LBVim:
    """LBVim of width 300: 15 M parameters."""
    return _create_lbvim('lbvim_300_patch16_224', pretrained, {'embed_dim': 300}, kwargs)


@register_model
def lbvim_small_patch16_224(pretrained: bool = False, **kwargs) -> LBVim:
    """LBVim-S: 24 M parameters."""
    return _create_lbvim('lbvim_small_patch16_224', pretrained, {'embed_dim': 384}, kwargs)


@register_model
def lbvim_528_patch16_224(pretrained: bool = False, **kwargs) -> LBVim:
    """LBVim of width 528 with attention pooling: 45 M parameters."""
    args = {'embed_dim': 528, 'global_pool': 'map'}
    return _create_lbvim('lbvim_528_patch16_224', pretrained, args, kwargs)


@register_model
def lbvim_nano(pretrained: bool = False, **kwargs) -> LBVim:
    """Not of the paper: trains on a CPU in minutes (for small images give `img_size=32, patch_size=4`)."""
    return _create_lbvim('lbvim_nano', pretrained, {'embed_dim': 96, 'depth': 6}, kwargs)


@register_model
def test_lbvim(pretrained: bool = False, **kwargs) -> LBVim:
    """For tests: under 1 M parameters."""
    return _create_lbvim('test_lbvim', pretrained, {'embed_dim': 128, 'depth': 4}, kwargs)
