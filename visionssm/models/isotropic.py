"""timm's contract for models of one resolution: patches, a stack of blocks, head."""

import math

import torch
from timm.layers import lecun_normal_, trunc_normal_
from timm.models import checkpoint
from torch import Tensor, nn

from visionssm.layers import resample_grid

from .builder import record_args, take_indices
from .scanning import ScanningBackbone


class Isotropic(ScanningBackbone):
    """Embedding, blocks at one resolution, norm, pooling, linear classifier.

    A subclass sets `patch_embed` (a `GridEmbed`), `pos_embed`, `blocks`, `norm`, `head_drop` and `head`, and defines:

    - `_prepare(images)`: the stream that blocks work on, and the visiting orders (K, T) that every block gets;
    - `_spatial(stream, height, width)`: the map (B, H, W, D) of patches in it;
    - `_pool(features)`: what the classifier sees.

    With `features = 'mixer'` its blocks also have `step`, which gives the stream and what the mixer added to it.

    Args:
        embed_dim: Channels of the stream.
        depth: Blocks.
        reduction: Pixels per token along a side.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: Pooling, one of `POOLS`.
        features: What `forward_intermediates` gives: 'stream', or 'mixer' for what the block's mixer adds to it.

    Raises:
        ValueError: If `global_pool` or `features` is none of these.
    """

    POOLS = ('', 'avg')
    embedding = 'patch_embed'

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        reduction: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        features: str = 'stream',
    ) -> None:
        super().__init__()
        if features not in ('stream', 'mixer'):
            raise ValueError(f'features is {features!r}; allowed are stream and mixer')
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.global_pool = self._checked_pool(global_pool)
        self.grad_checkpointing = False
        self.features = features
        self.feature_info = [
            {'num_chs': embed_dim, 'reduction': reduction, 'module': f'blocks.{i}'} for i in range(depth)
        ]

    @torch.jit.ignore
    def _checked_pool(self, pool: str) -> str:
        if pool not in self.POOLS:
            raise ValueError(f'global_pool is {pool!r}; allowed are {", ".join(map(repr, self.POOLS))}')
        return pool

    @torch.jit.ignore
    def stream_obstacle(self) -> str:
        """What works on the stream besides norms and projections, so that it can't be rotated; '' if nothing."""
        return ''

    @torch.jit.ignore
    def final_projection(self) -> nn.Module:
        """What reads the final norm."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to normed tokens."""
        x, order = self._prepare(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, order)
            else:
                x = block(x, order)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify normed tokens; with `pre_logits` only pool."""
        x = self.head_drop(self._pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the patches after blocks.

        Args:
            x: Images, (B, C, H, W).
            indices: Blocks wanted: the last n if an int, all if None.
            norm: Apply the final norm to every map.
            stop_early: Do not run blocks behind the last one wanted.
            output_fmt: 'NCHW', 'NHWC' or 'NLC'.
            intermediates_only: Leave out the final features.

        Returns:
            (final features as `forward_features` gives them, maps), or the maps.

        Raises:
            ValueError: If a block does not exist, or the format is none of these.
        """
        if output_fmt not in ('NCHW', 'NHWC', 'NLC'):
            raise ValueError(f'output_fmt is {output_fmt!r}; allowed are NCHW, NHWC and NLC')
        taken, highest = take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        dtype = next(self.parameters()).dtype
        maps = []
        x, order = self._prepare(x)
        for i, block in enumerate(self.blocks[: highest + 1] if stop_early else self.blocks):
            step = block.step if self.features == 'mixer' else block
            x = checkpoint(step, x, order) if self.grad_checkpointing else step(x, order)
            x, y = x if self.features == 'mixer' else (x, x)
            if i in taken:
                y = self._spatial(self.norm(y) if norm else y, height, width).to(dtype)  # the stream may be fp32
                if output_fmt == 'NCHW':
                    y = y.permute(0, 3, 1, 2).contiguous()
                maps.append(y.flatten(1, 2) if output_fmt == 'NLC' else y)
        return maps if intermediates_only else (self.norm(x), maps)

    @torch.jit.ignore
    def token_grid(self, length: int, height: int, width: int) -> Tensor:
        """Where the patches of a map of this size stand in a sequence of `length` tokens, (height, width)."""
        tokens = torch.arange(length)
        if length == height * width:
            return tokens.unflatten(0, (height, width))
        return self._spatial(tokens[None, :, None], height, width)[0, ..., 0]

    @torch.jit.ignore
    def resample_pos_embed(self, pos_embed: Tensor, new_size: tuple[int, int], old_size: tuple[int, int]) -> Tensor:
        """Position embeddings for another grid: bicubic, without antialiasing."""
        return resample_grid(pos_embed, new_size, old_size)

    @torch.jit.ignore
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make the model for images of another size: position embeddings are resampled and stay parameters.

        Raises:
            ValueError: If the size is below the least.
        """
        old = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size)
        resampled = self.resample_pos_embed(self.pos_embed.detach(), self.patch_embed.grid_size, old)
        self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)
        record_args(self, img_size=self.patch_embed.img_size)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove blocks behind the last one wanted, and norm and head as asked."""
        taken, highest = take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: highest + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, '')
        return taken

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Set a new classifier for `num_classes` (0: none), and pooling unless None, on the same device and dtype."""
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = self._make_head(num_classes, like.device, like.dtype).train(self.training)

    def _make_head(self, num_classes: int, device, dtype) -> nn.Module:
        if num_classes < 1:
            return nn.Identity()
        return nn.Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns of parameter groups, for layer-wise learning rates."""
        return {
            'stem': r'^cls_token|pos_embed|patch_embed',
            'blocks': [(r'^blocks\.(\d+)', None), (r'^norm', (99999,))],
        }


def init_mamba_stack(model: Isotropic) -> None:
    """Initialise patch and position embedding, output projections and classifier as Vim does.

    Everything else keeps its modules' own initialisation.
    """
    trunc_normal_(model.pos_embed, std=0.02)
    lecun_normal_(model.patch_embed.proj.weight)
    nn.init.zeros_(model.patch_embed.proj.bias)
    if isinstance(model.head, nn.Linear):
        trunc_normal_(model.head.weight, std=0.02)
        nn.init.zeros_(model.head.bias)
    init_out_proj(model)


def init_out_proj(model: Isotropic) -> None:
    """Initialise output projections as torch does, divided by the root of their number."""
    for block in model.blocks:
        weight = block.mixer.out_proj.weight
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        with torch.no_grad():
            weight /= math.sqrt(len(model.blocks))


def fit_pos_embed(state_dict: dict[str, Tensor], model: Isotropic) -> dict[str, Tensor]:
    """Resample the position embeddings of a checkpoint to the grid of `model`, if they are for another.

    Raises:
        ValueError: If the grid that they are for is not known.
    """
    pos_embed = state_dict.get('pos_embed')
    if pos_embed is None or pos_embed.ndim != 3:
        return state_dict
    embed = model.patch_embed
    old = _source_grid(pos_embed.shape[1] - (model.pos_embed.shape[1] - embed.num_patches), model)
    if old == embed.grid_size:
        return state_dict
    return {**state_dict, 'pos_embed': model.resample_pos_embed(pos_embed, embed.grid_size, old)}


def _source_grid(tokens: int, model: Isotropic) -> tuple[int, int]:
    embed = model.patch_embed
    size = getattr(model, 'pretrained_model_args', {}).get('img_size')  # of a saved model, from its config
    if size is not None:
        grid = embed.dynamic_feat_size((size, size) if isinstance(size, int) else tuple(size))
        if grid[0] * grid[1] == tokens:
            return grid
    if embed.num_patches == tokens:
        return embed.grid_size
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"pos_embed has {tokens} patches: neither the model's {embed.num_patches} nor a square grid")
    return side, side
