"""ViT-Adapter around PlainMamba: maps of strides 4, 8, 16 and 32 for detectors.

Vision Transformer Adapter for Dense Predictions, https://arxiv.org/abs/2205.08534 (ICLR 2023); its deformable
attention is that of https://arxiv.org/abs/2010.04159, here in plain torch. As PlainMamba's detectors use it:
https://github.com/ChenhongyiYang/PlainMamba at 0975a1d0d8bca50e7b85cf15e53de2a383ae12a0, Apache-2.0.

Differs: images of any size (upstream takes multiples of 32).
"""

import math
import re
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath
from timm.models import checkpoint
from torch import Tensor, nn

from .plainmamba import PlainMamba
from .renames import rename

Sizes = list[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Each query reads a few points around its place in maps of several levels, and weighs them.

    Args:
        dim: Channels.
        num_heads: Heads; they divide `dim`.
        levels: Maps.
        points: Points per head and map.

    Raises:
        ValueError: If the heads do not divide the channels.

    Source: arXiv:2010.04159, section 4.1.
    """

    def __init__(self, dim: int, num_heads: int, levels: int, points: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f'num_heads is {num_heads!r}; allowed are divisors of the {dim} channels')
        self.shape = (num_heads, levels, points)
        self.sampling_offsets = nn.Linear(dim, 2 * num_heads * levels * points)
        self.attention_weights = nn.Linear(dim, num_heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init_weights()

    def _init_weights(self) -> None:
        heads, levels, points = self.shape
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)  # every head looks its own way, further by each point
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1).view(1, 1, -1, 1)
        offsets = (direction.view(heads, 1, 1, 2) * steps).expand(heads, levels, points, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, places: Tensor, value: Tensor, sizes: Sizes) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C).
            places: x and y of the queries in the image, (Q, 2) in 0..1.
            value: Tokens of all maps, one map after the other, (B, L, C).
            sizes: Height and width of the maps.
        """
        heads, levels, points = self.shape
        batch, queries, _ = query.shape
        scale = torch.tensor([(width, height) for height, width in sizes], dtype=query.dtype, device=query.device)
        offsets = self.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
        grid = 2 * (places.view(-1, 1, 1, 1, 2) + offsets / scale.view(-1, 1, 2)) - 1
        grid = grid.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [levels, B heads, Q, points, 2]
        weights = self.attention_weights(query).view(batch, queries, heads, levels * points).softmax(-1)
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
        value = self.value_proj(value).unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        maps = value.split([height * width for height, width in sizes], -1)
        read = [  # [B heads, C / heads, Q, points]
            F.grid_sample(y.unflatten(-1, size), grid[i], 'bilinear', 'zeros', align_corners=False)
            for i, (y, size) in enumerate(zip(maps, sizes, strict=True))
        ]
        out = (torch.cat(read, -1) * weights).sum(-1)
        return self.output_proj(out.view(batch, -1, queries).transpose(1, 2))


class Injector(nn.Module):
    """Tokens read from the pyramid: x + gamma * attention(norm(x), norm(pyramid)); gamma starts at 0."""

    def __init__(self, dim: int, num_heads: int, points: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, num_heads, 3, points)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, places: Tensor, pyramid: Tensor, sizes: Sizes) -> Tensor:
        """Inject (B, L', C) into (B, L, C)."""
        return x + self.gamma * self.attn(self.query_norm(x), places, self.feat_norm(pyramid), sizes)


class Extractor(nn.Module):
    """The pyramid reads from tokens, then a feed-forward with a depthwise convolution on each of its maps."""

    def __init__(self, dim: int, num_heads: int, points: int, ffn_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * ffn_ratio)
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, num_heads, 1, points)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, pyramid: Tensor, places: Tensor, sizes: Sizes, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Extract from (B, L, C), a map of `size`, into (B, L', C), maps of `sizes`."""
        pyramid = pyramid + self.attn(self.query_norm(pyramid), places, self.feat_norm(x), [size])
        hidden = self.fc1(self.ffn_norm(pyramid))
        maps = [to_tokens(self.conv(y)) for y in to_maps(hidden, sizes)]
        return pyramid + self.drop_path(self.fc2(F.gelu(torch.cat(maps, 1))))


class Interaction(nn.Module):
    """Injector, some blocks of the model, one extractor or more."""

    def __init__(
        self, dim: int, num_heads: int, points: int, ffn_ratio: float, drop_path: float, extractors: int
    ) -> None:
        super().__init__()
        self.injector = Injector(dim, num_heads, points)
        self.extractors = nn.ModuleList(
            Extractor(dim, num_heads, points, ffn_ratio, drop_path) for _ in range(extractors)
        )


class SpatialPrior(nn.Module):
    """Convolutions on the image: four maps of strides 4, 8, 16 and 32, projected to the model's channels."""

    def __init__(self, in_chans: int, width: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, width, 3, stride=2),
            ConvNormAct(width, width, 3),
            ConvNormAct(width, width, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.convs = nn.ModuleList(ConvNormAct(before, after, 3, stride=2) for before, after in pairwise(widths))
        self.projs = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps; their sizes are rounded up."""
        maps = [self.stem(x)]
        for conv in self.convs:
            maps.append(conv(maps[-1]))
        return [proj(y) for proj, y in zip(self.projs, maps, strict=True)]


class PlainMambaAdapter(nn.Module):
    """PlainMamba with a convolutional pyramid beside it; the two exchange features between groups of blocks.

    Args:
        model: The model.
        num_heads: Heads of the deformable attention; they divide the channels. Upstream: 6 (L1, L2), 8 (L3).
        groups: Groups that the blocks are cut into, as many in each.
        points: Points that a head reads per map.
        conv_width: Channels of the pyramid's first convolutions.
        ffn_ratio: Hidden channels of the extractors' feed-forward over the model's channels.
        drop_path_rate: Stochastic depth of that feed-forward, per sample.

    Raises:
        TypeError: If `model` is not a PlainMamba.
        ValueError: If the heads do not divide the channels, or the groups the blocks.
    """

    inner = 'model.'  # where a classifier's weights are

    def __init__(
        self,
        model: PlainMamba,
        num_heads: int = 6,
        groups: int = 4,
        points: int = 4,
        conv_width: int = 64,
        ffn_ratio: float = 0.25,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not getattr(model, 'takes_adapter', False):
            raise TypeError(f'the adapter is for PlainMamba, not for {type(model).__name__}')
        if groups < 1 or len(model.blocks) % groups:
            raise ValueError(f'groups is {groups!r}; allowed are divisors of the {len(model.blocks)} blocks')
        dim = model.embed_dim
        self.model = model
        self.pretrained_cfg = model.pretrained_cfg
        self.feature_info = [
            {'num_chs': dim, 'reduction': reduction, 'module': f'norms.{i}'}
            for i, reduction in enumerate([4, 8, 16, 32])
        ]
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.prior = SpatialPrior(model.in_chans, conv_width, dim)
        self.interactions = nn.ModuleList(
            Interaction(dim, num_heads, points, ffn_ratio, drop_path_rate, 3 if i == groups - 1 else 1)
            for i in range(groups)
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(4))
        nn.init.normal_(self.level_embed)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to maps (B, D, H', W') of strides 4, 8, 16 and 32, sizes rounded up."""
        finest, *maps = self.prior(x)
        sizes = [tuple(y.shape[-2:]) for y in maps]
        pyramid = torch.cat([to_tokens(y) + level for y, level in zip(maps, self.level_embed, strict=True)], 1)
        x, walk = self.model._prepare(x)
        size = tuple(x.shape[1:3])
        places = torch.cat([grid_places(y, x) for y in sizes])
        token_places = grid_places(size, x)
        per_group = len(self.model.blocks) // len(self.interactions)
        for i, interaction in enumerate(self.interactions):
            x = interaction.injector(x.flatten(1, 2), token_places, pyramid, sizes).unflatten(1, size)
            for block in self.model.blocks[i * per_group : (i + 1) * per_group]:
                x = checkpoint(block, x, walk) if self.model.grad_checkpointing else block(x, walk)
            for extractor in interaction.extractors:
                pyramid = extractor(pyramid, places, sizes, x.flatten(1, 2), size)
        maps = to_maps(pyramid, sizes)
        height, width = finest.shape[-2:]
        maps = [self.up(maps[0])[..., :height, :width] + finest, *maps]
        x = x.permute(0, 3, 1, 2)
        maps = [y + F.interpolate(x, y.shape[-2:], mode='bilinear', align_corners=False) for y in maps]
        return tuple(norm(y) for norm, y in zip(self.norms, maps, strict=True))

    def forward_intermediates(
        self, x: Tensor, indices: list[int], output_fmt: str = 'NCHW', intermediates_only: bool = True
    ) -> list[Tensor]:
        """Some of the maps; the arguments are those of the models."""
        maps = self(x)
        return [maps[i].permute(0, 2, 3, 1) if output_fmt == 'NHWC' else maps[i] for i in indices]

    def prune_intermediate_layers(self, indices: list[int], prune_norm: bool, prune_head: bool) -> None:
        """Remove norm and head; every map needs all blocks."""
        self.model.prune_intermediate_layers(1, prune_norm, prune_head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.model.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns of parameter groups, for layer-wise learning rates; what is added comes last."""
        return {
            'stem': r'^model\.(?:pos_embed|patch_embed)',
            'blocks': r'^model\.blocks\.(\d+)',
            'added': r'^(?!model)',
        }

    def no_weight_decay(self) -> set[str]:
        """What the model exempts."""
        return {f'model.{name}' for name in self.model.no_weight_decay()}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'PlainMambaAdapter') -> dict[str, Tensor]:
        """Upstream names to ours, one tensor for one; the classifier is left out."""
        added = {name: x for name, x in state_dict.items() if _ADDED.match(name)}
        own = model.model.checkpoint_filter_fn(
            {name: x for name, x in state_dict.items() if name not in added}, model.model
        )
        own = {f'model.{name}': x for name, x in own.items() if not name.startswith('head.')}
        return {**own, **rename(added, _RENAMES)}


def to_tokens(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_maps(x: Tensor, sizes: Sizes) -> list[Tensor]:
    """Tokens of maps of `sizes`, one after the other, as maps (B, C, H, W)."""
    parts = x.transpose(1, 2).split([height * width for height, width in sizes], -1)
    return [part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)]


def grid_places(size: tuple[int, int], like: Tensor) -> Tensor:
    """The middles of a grid's cells as x and y, (H W, 2) in 0..1."""
    y, x = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n for n in size)
    return torch.stack(torch.meshgrid(y, x, indexing='ij')[::-1], -1).flatten(0, 1)


# what the adapter adds to the model, upstream and here
_ADDED = re.compile(r'(level_embed$|(spm|interactions|up|ad_norm\d)\.)')
# convolution, BatchNorm, ReLU: three entries of one nn.Sequential each time
_PARTS = ('conv', 'bn')
_RENAMES = (
    (r'^spm\.stem\.(\d+)\.', lambda m: f'prior.stem.{int(m[1]) // 3}.{_PARTS[int(m[1]) % 3]}.'),
    (r'^spm\.conv(\d)\.(\d)\.', lambda m: f'prior.convs.{int(m[1]) - 2}.{_PARTS[int(m[2])]}.'),
    (r'^spm\.fc(\d)\.', lambda m: f'prior.projs.{int(m[1]) - 1}.'),
    (r'^ad_norm(\d)\.', lambda m: f'norms.{int(m[1]) - 1}.'),
    (r'\.extractor\.', '.extractors.0.'),
    (r'\.extra_extractors\.(\d+)\.', lambda m: f'.extractors.{int(m[1]) + 1}.'),
    (r'\.ffn\.dwconv\.dwconv\.', '.conv.'),
    (r'\.ffn\.(fc\d)\.', r'.\1.'),
)
