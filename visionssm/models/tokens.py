"""Vim and its kin: patches with class tokens among them, Mamba blocks that scan both ways.

With several class tokens these are the registers of Mamba-Reg. Where they stand follows from the number of patches:
spread evenly, which for one is the middle of the sequence, or in front of all.
"""

import torch
from timm.layers import (
    RotaryEmbeddingCat,
    apply_rot_embed_cat,
    calculate_drop_path_rates,
    register_notrace_function,
    trunc_normal_,
)
from torch import Tensor, nn

from visionssm.layers import (
    STREAM_NORMS,
    LayerScans,
    Linear,
    MambaBlock,
    ScanSpec,
    StreamNorm,
    StridedPatchEmbed,
    at_least_fp32,
    check_image_size,
    resample_grid,
)
from visionssm.scans import ScanOrder, get_layer_scans, get_scan, layer_scans_to_json, scan_order

from .isotropic import Isotropic, fit_pos_embed, init_mamba_stack, init_out_proj
from .pyramid import init_linear
from .renames import rename

torch.fx.wrap('apply_rot_embed_cat')
torch.fx.wrap('at_least_fp32')
torch.fx.wrap('resample_grid')
torch.fx.wrap('scan_order')


@torch.fx.wrap
@register_notrace_function
def insert_tokens(x: Tensor, tokens: Tensor, first: bool = False) -> Tensor:
    """Put tokens among patches.

    Args:
        x: Patches, (B, M, C).
        tokens: (B, n, C).
        first: Put them in front; else one behind each of the first n runs of M // (n + 1) patches.

    Returns:
        (B, M + n, C).
    """
    count = tokens.shape[1]
    if first:
        return torch.cat([tokens, x], 1)
    run = x.shape[1] // (count + 1)
    runs = x.narrow(1, 0, count * run).reshape(x.shape[0], count, run, x.shape[2])
    runs = torch.cat([runs, tokens.unsqueeze(2)], 2).flatten(1, 2)
    return torch.cat([runs, x[:, count * run :]], 1)


@torch.fx.wrap
@register_notrace_function
def take_tokens(x: Tensor, count: int, first: bool = False) -> tuple[Tensor, Tensor]:
    """Undo `insert_tokens`.

    Args:
        x: Patches with tokens among them, (B, M + n, C).
        count: n.
        first: Whether they are in front.

    Returns:
        Patches (B, M, C) and tokens (B, n, C).
    """
    if first:
        return x[:, count:], x[:, :count]
    run = (x.shape[1] - count) // (count + 1)
    length = count * (run + 1)
    runs = x.narrow(1, 0, length).reshape(x.shape[0], count, run + 1, x.shape[2])
    return torch.cat([runs[:, :, :-1].flatten(1, 2), x[:, length:]], 1), runs[:, :, -1]


@torch.fx.wrap
@register_notrace_function
def insert_into_walks(order: Tensor, patches: int, count: int, first: bool, mirrored: list[bool]) -> Tensor:
    """Visiting orders of the patches to those of the sequence with class tokens.

    Args:
        order: Patches as visited, (K, T).
        patches: Their number M.
        count: Class tokens n.
        first: Whether they are in front.
        mirrored: For each direction, whether it meets the tokens as many steps from its end as others from their start:
            so one that is another backwards stays that.

    Returns:
        (K, T + n); a walk meets its tokens where they would stand among T patches.
    """
    index = torch.arange(count, device=order.device, dtype=order.dtype)
    ends = index * 0 if first else (index + 1) * (patches // (count + 1))  # patches before a token
    order = order + (order.unsqueeze(2) >= ends).sum(2).to(order.dtype)
    tokens = (ends + index)[None, :, None]
    walks = []
    for k, backwards in enumerate(mirrored):
        walk = order[k : k + 1].flip(1) if backwards else order[k : k + 1]
        walk = insert_tokens(walk.unsqueeze(2), tokens, first).squeeze(2)
        walks.append(walk.flip(1) if backwards else walk)
    return torch.cat(walks)


@torch.fx.wrap
@register_notrace_function
def resample_pos_embed(
    pos_embed: Tensor, new_size: list[int], old_size: list[int], count: int = 1, first: bool = False
) -> Tensor:
    """Resize position embeddings in which class tokens have rows; these stay as they are.

    Args:
        pos_embed: (1, M + n, D).
        new_size: Grid wanted.
        old_size: Grid that the rows are for, M tokens.
        count: Class tokens n.
        first: Whether they are in front.

    Returns:
        (1, M' + n, D); bicubic, without antialiasing.
    """
    if count == 0:
        return resample_grid(pos_embed, new_size, old_size)
    rows, own = take_tokens(pos_embed, count, first)
    return insert_tokens(resample_grid(rows, new_size, old_size), own, first)


def _mirrored(order: ScanOrder, first: bool) -> list[bool]:
    """Which directions meet class tokens from their end; the same at every size, so any grid tells.

    Those that are an earlier one backwards; the later half if there are none, and tokens in front would see no patch.
    """
    table = order.table(5, 7)
    mirrored = [any((table[k] == table[j, ::-1]).all() for j in range(k)) for k in range(order.directions)]
    if first and not any(mirrored):
        mirrored = [k >= order.directions // 2 for k in range(order.directions)]
    return mirrored


class Neck(nn.Module):
    """What a classifier sees of class tokens (B, n, C): each in fewer channels, side by side, RMSNorm of (B, n C / q).

    Args:
        dim: Channels C.
        count: Class tokens n.
        reduce: q, a divisor of C.
    """

    def __init__(self, dim: int, count: int, reduce: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.fc = Linear(dim, dim // reduce, bias=False, **dd)
        self.norm = StreamNorm(count * dim // reduce, eps=1e-5, **dd)
        trunc_normal_(self.fc.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Put class tokens side by side."""
        return self.norm(self.fc(x).flatten(1))


class TokenMamba(Isotropic):
    """Patches with class tokens among them, Mamba blocks, a classifier that sees the class tokens.

    Args:
        img_size: Image size (one side, or height and width) that the position embeddings are for.
        patch_size: Side of a patch.
        stride: Distance between patches; None: `patch_size`.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: 'token' (class tokens, side by side), 'avg' (mean of the patches) or '' (all tokens).
        embed_dim: Channels C.
        depth: Blocks.
        num_cls_tokens: Class tokens n; more than one are registers.
        cls_position: 'spread' (evenly among the patches; one stands in their middle) or 'first'.
        cls_pos_embed: Whether class tokens have position embeddings `pos_embed_cls` instead of rows of `pos_embed`.
        cls_reduce: What the channels of each class token are divided by before the classifier; 1: it sees all.
        norm_layer: 'rmsnorm' or 'layernorm'.
        average: Whether mixers average over directions; else they add them up.
        init: How weights start: 'mamba' (step projections as Mamba starts them) or 'linear' (those of all linear layers
            normal, all biases of such zero, as VideoMamba and ShuffleMamba).
        d_state: States N per channel.
        d_conv: Width of the causal convolution.
        expand: Inner channels of the mixer over `embed_dim`.
        scan: Scan order of the patches: name, dict, JSON string or `ScanOrder`. If it does not offer two directions,
            the model has as many sets of scan parameters as it has directions. A walk meets class tokens at the steps
            at which they stand in the sequence, or as far from its end if it is another backwards; if none is, the
            later half meets tokens in front at the end.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        features: What `forward_intermediates` gives: 'stream', or 'mixer' for what the mixer of a block adds to it.
        dynamic_img_size: Take images of any size, resampling position embeddings in every forward.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    POOLS = ('token', 'avg', '')
    BLOCK = MambaBlock
    DIRECTIONS = 2  # asked of scans
    DIRECTION_GATE = False  # see `MambaMixer`

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'token',
        embed_dim: int = 192,
        depth: int = 24,
        num_cls_tokens: int = 1,
        cls_position: str = 'spread',
        cls_pos_embed: bool = False,
        cls_reduce: int = 1,
        norm_layer: str = 'rmsnorm',
        average: bool = True,
        init: str = 'mamba',
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        scan: ScanSpec = 'bidirectional',
        local_window: int = 0,
        features: str = 'stream',
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        if type(num_cls_tokens) is not int or num_cls_tokens < 0:
            raise ValueError(f'num_cls_tokens is {num_cls_tokens!r}; allowed are integers from 0')
        if cls_position not in ('spread', 'first'):
            raise ValueError(f'cls_position is {cls_position!r}; allowed are spread and first')
        if cls_pos_embed and not num_cls_tokens:
            raise ValueError('cls_pos_embed is True; allowed is False, as there are no class tokens')
        if norm_layer not in STREAM_NORMS:
            raise ValueError(f'norm_layer is {norm_layer!r}; allowed are {" and ".join(STREAM_NORMS)}')
        if init not in _INITS:
            raise ValueError(f'init is {init!r}; allowed are {" and ".join(_INITS)}')
        if type(cls_reduce) is not int or cls_reduce < 1 or embed_dim % cls_reduce:
            raise ValueError(f'cls_reduce is {cls_reduce!r}; allowed are divisors of the {embed_dim} channels')
        if not num_cls_tokens:
            self.POOLS = ('avg', '')
        stride = patch_size if stride is None else stride
        super().__init__(embed_dim, depth, stride, in_chans, num_classes, global_pool, features)
        dd = {'device': device, 'dtype': dtype}
        if self.layered_scans:
            orders = get_layer_scans(scan, depth, self.DIRECTIONS)
        else:
            orders = [get_scan(scan, self.DIRECTIONS)] * depth
        self.scan_directions = orders[0].directions
        self.scan = layer_scans_to_json(orders)
        self.num_cls_tokens, self.cls_first, self.cls_reduce = num_cls_tokens, cls_position == 'first', cls_reduce
        self.mirrored = _mirrored(orders[0], self.cls_first)  # where all are alike
        self.patch_size = patch_size
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = StridedPatchEmbed(img_size, patch_size, stride, in_chans, embed_dim, **dd)

        def rows(count: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(1, count, embed_dim, **dd))

        self.cls_rows = 0 if cls_pos_embed else num_cls_tokens  # of `pos_embed`
        self.cls_token = rows(num_cls_tokens) if num_cls_tokens else None
        self.pos_embed_cls = rows(num_cls_tokens) if cls_pos_embed else None
        self.pos_embed = rows(self.patch_embed.num_patches + self.cls_rows)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        mixer_args = {
            'd_state': d_state,
            'd_conv': d_conv,
            'expand': expand,
            'local_window': local_window,
            'average': average,
            'direction_gate': self.DIRECTION_GATE,
        }
        # upstream drops the branch that comes into the next block; the schedule is the plain one
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        norm = STREAM_NORMS[norm_layer]
        self.blocks = nn.ModuleList(
            self.BLOCK(embed_dim, rate, {**mixer_args, 'scan': order}, norm, **dd)
            for rate, order in zip(rates, orders, strict=True)
        )
        self.norm = norm(embed_dim, eps=1e-5, **dd)
        self.neck = self._make_neck(device, dtype)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes, device, dtype)
        _INITS[init](self)

    def _make_neck(self, device, dtype) -> nn.Module:
        if self.global_pool != 'token' or self.cls_reduce == 1:
            return nn.Flatten()
        return Neck(self.embed_dim, self.num_cls_tokens, self.cls_reduce, device=device, dtype=dtype)

    def _make_head(self, num_classes: int, device, dtype) -> nn.Module:
        tokens = self.num_cls_tokens if self.global_pool == 'token' else 1
        reduce = self.cls_reduce if self.global_pool == 'token' else 1
        self.head_hidden_size = tokens * self.embed_dim // reduce
        return super()._make_head(num_classes, device, dtype)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As every model; the neck is made or removed as `global_pool` asks."""
        before = self.global_pool
        super().reset_classifier(num_classes, global_pool)
        if self.global_pool != before:
            like = self.pos_embed
            self.neck = self._make_neck(like.device, like.dtype).train(self.training)

    @torch.jit.ignore
    def final_projection(self) -> nn.Module:
        """What reads the final norm."""
        return self.neck.fc if isinstance(self.neck, Neck) else self.head

    def _embed(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Images to the stream, and the grid of patches."""
        check_image_size(x, self.patch_size, None if self.dynamic_img_size else self.patch_embed.img_size)
        x = self.patch_embed(x)
        batch, height, width, _ = x.shape
        size = [height, width]
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = resample_pos_embed(pos_embed, size, self.patch_embed.grid_size, self.cls_rows, self.cls_first)
        if self.pos_embed_cls is not None:
            pos_embed = insert_tokens(pos_embed, self.pos_embed_cls, self.cls_first)
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = insert_tokens(x, self.cls_token.expand(batch, -1, -1), self.cls_first)
        return at_least_fp32(self.pos_drop(x + pos_embed)), size

    def _walk(self, x: Tensor, size: list[int]) -> Tensor:
        """Visiting orders (K, T) of the stream, for a grid of this size."""
        order = scan_order(self.scan, size[0], size[1], x)
        if self.cls_token is not None:
            order = insert_into_walks(order, size[0] * size[1], self.num_cls_tokens, self.cls_first, self.mirrored)
        return order

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, size = self._embed(x)
        return x, self._walk(x, size)

    def _pool(self, x: Tensor) -> Tensor:
        if self.global_pool == 'token':
            x = self.neck(take_tokens(x, self.num_cls_tokens, self.cls_first)[1])
        elif self.global_pool == 'avg':
            x = self._patches(x).mean(1)
        return x

    def _patches(self, x: Tensor) -> Tensor:
        if self.cls_token is not None:
            x = take_tokens(x, self.num_cls_tokens, self.cls_first)[0]
        return x

    @torch.jit.ignore
    def _spatial(self, x: Tensor, height: int, width: int) -> Tensor:
        return self._patches(x).unflatten(1, (height, width))

    @torch.jit.ignore
    def set_scan(self, scan: ScanSpec) -> None:
        """Walk along another scan order with as many directions; the weights stay as they are.

        Args:
            scan: Name, dict, JSON string or `ScanOrder`.

        Raises:
            ValueError: If the order is unknown or has another number of directions.
        """
        super().set_scan(scan)
        self.mirrored = _mirrored(get_layer_scans(self.scan, len(self.blocks))[0], self.cls_first)

    @torch.jit.ignore
    def resample_pos_embed(self, pos_embed: Tensor, new_size: tuple[int, int], old_size: tuple[int, int]) -> Tensor:
        """Position embeddings for another grid; rows of class tokens stay what they are and go where these go."""
        return resample_pos_embed(pos_embed, new_size, old_size, self.cls_rows, self.cls_first)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What upstream exempts beside 1-D parameters and biases, which timm's rule covers.

        `A_log` is decayed there: the marks that upstream sets on it are not read.
        """
        exempt = {'pos_embed', 'cls_token', 'pos_embed_cls'}
        return {name for name, _ in self.named_parameters(recurse=False) if name in exempt}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'TokenMamba') -> dict[str, Tensor]:
        """Upstream names to ours, one tensor for one; position embeddings of another grid are resampled.

        Class tokens, and their rows of the position embeddings, are left out for a model without any, and the neck for
        one whose classifier does not see them.

        Raises:
            ValueError: If the grid that the position embeddings are for is not known.
        """
        if 'norm_f.weight' in state_dict or any('.mixer.A_b_log' in name for name in state_dict):
            state_dict = rename(state_dict, _RENAMES)
        if model.global_pool != 'token':
            state_dict = {name: x for name, x in state_dict.items() if not name.startswith('neck.')}
        if 'cls_token' in state_dict and model.cls_token is None:
            state_dict = dict(state_dict)
            count = state_dict.pop('cls_token').shape[1]
            if state_dict.pop('pos_embed_cls', None) is None:
                state_dict['pos_embed'] = take_tokens(state_dict['pos_embed'], count, model.cls_first)[0]
        return fit_pos_embed(state_dict, model)


class RotaryBlock(MambaBlock):
    """`MambaBlock` that turns the stream by its position afterwards, if asked to.

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
        mixer_args: Arguments of `MambaMixer`.
        norm_layer: `StreamNorm` or `StreamLayerNorm`.

    Attributes:
        rotary: Whether it turns the stream.
        index: Which of the visiting orders is its own.
    """

    def __init__(
        self, dim: int, drop_path: float, mixer_args: dict, norm_layer: type[nn.Module], device=None, dtype=None
    ) -> None:
        super().__init__(dim, drop_path, mixer_args, norm_layer, device=device, dtype=dtype)
        self.rotary = False
        self.index = 0

    def step(self, x: Tensor, walk: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The stream (B, L, C) after the block, and the mixer's output.

        Args:
            x: Stream.
            walk: Visiting orders (K, T) of blocks and, with `rotary`, last sines and cosines (L, 2 C).
        """
        y = self.mixer(self.norm(x), walk[self.index])
        x = x + self.drop_path(y)
        return apply_rot_embed_cat(x, walk[-1]) if self.rotary else x, y

    def forward(self, x: Tensor, walk: list[Tensor]) -> Tensor:
        """Add the mixer's output to (B, L, C)."""
        return self.step(x, walk)[0]


class RotaryMamba(TokenMamba):
    """Patches with a class token in their middle or without one, Mamba blocks, and a stream that may be turned between.

    Args:
        img_size: Image size (one side, or height and width) that the position embeddings are for.
        patch_size: Side of a patch.
        stride: Distance between patches; None: `patch_size`.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: 'token' (class token), 'avg' (mean of the patches) or '' (all tokens); None: 'token', or 'avg' if
            there is none.
        embed_dim: Channels.
        depth: Blocks.
        d_state: States N per channel.
        d_conv: Width of the causal convolution.
        expand: Inner channels of the mixer over `embed_dim`.
        scan: Scan order of the patches: name, dict, JSON string or `ScanOrder`; with `layered_scans` also a sequence or
            a JSON list of them, one per block. If it does not offer `DIRECTIONS`, the model has as many sets of scan
            parameters as it has directions. The class token is met half-way.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        class_token: Whether there is one.
        rotary: Turn pairs of the stream's channels by row and column, after the embedding and after every block but the
            last.
        features: What `forward_intermediates` gives: 'stream', or 'mixer' for what the mixer of a block adds to it.
        dynamic_img_size: Take images of any size, resampling position embeddings in every forward.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    BLOCK = RotaryBlock
    AVERAGE = True  # see `MambaMixer`
    INIT = 'mamba'

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        scan: LayerScans = 'bidirectional',
        local_window: int = 0,
        class_token: bool = True,
        rotary: bool = False,
        features: str = 'stream',
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        if global_pool is None:
            global_pool = 'token' if class_token else 'avg'
        if rotary and embed_dim % 4:
            raise ValueError(f'embed_dim is {embed_dim!r}; with rotary=True allowed are multiples of 4')
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            stride=stride,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_cls_tokens=int(class_token),
            average=self.AVERAGE,
            init=self.INIT,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            scan=scan,
            local_window=local_window,
            features=features,
            dynamic_img_size=dynamic_img_size,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        self.rope = None
        if rotary:  # angles of the 14x14 grid of pretraining
            self.rope = RotaryEmbeddingCat(
                embed_dim, in_pixels=False, ref_feat_shape=[14, 14], device=device, dtype=dtype
            )
            for block in self.blocks[:-1]:
                block.rotary = True

    @torch.jit.ignore
    def stream_obstacle(self) -> str:
        """The rotary option, which turns pairs of its channels."""
        return '' if self.rope is None else 'the rotary option turns pairs of its channels'

    def _walks(self, x: Tensor, size: list[int]) -> list[Tensor]:
        """Visiting orders of the blocks, by their `index`."""
        return [self._walk(x, size)]

    def _angles(self, size: list[int]) -> Tensor:
        """Sines and cosines of the patches, (H W, 2 C): those of pretraining, stretched to the grid at hand."""
        return self.rope.get_embed(size)

    def _prepare(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, size = self._embed(x)
        walks = self._walks(x, size)
        if self.rope is not None:
            angles = self._angles(size)
            if self.cls_token is not None:
                still = torch.cat([torch.zeros_like(angles[:1, ::2]), torch.ones_like(angles[:1, ::2])], 1)
                angles = insert_tokens(angles.unsqueeze(0), still.unsqueeze(0)).squeeze(0)
            x = apply_rot_embed_cat(x, angles)
            walks.append(angles)
        return x, walks


def _init_as_mamba(model: TokenMamba) -> None:
    """Class tokens, then as LBVim; later directions start with torch's step projection and a zero bias."""
    for x in (model.cls_token, model.pos_embed_cls):
        if x is not None:
            trunc_normal_(x, std=0.02)
    init_mamba_stack(model)
    for block in model.blocks:
        for direction in block.mixer.directions[1:]:
            direction.dt_proj.reset_parameters()
            nn.init.zeros_(direction.dt_proj.bias)


def _init_linear(model: TokenMamba) -> None:
    """All linear layers alike, and only then the output projections; class tokens stay zero."""
    trunc_normal_(model.pos_embed, std=0.02)
    model.apply(init_linear)
    init_out_proj(model)


_INITS = {'mamba': _init_as_mamba, 'linear': _init_linear}
_RENAMES = [
    (r'^backbone\.', ''),
    (r'^layers\.', 'blocks.'),
    (r'^norm_f\.', 'norm.'),
    (r'^neck\.weight$', 'neck.fc.weight'),
    (r'^norm_neck\.', 'neck.norm.'),
    (r'\.mixer\.A_b_log$', '.mixer.directions.1.A_log'),
    (r'\.mixer\.D_b$', '.mixer.directions.1.D'),
    (r'\.mixer\.(conv1d|x_proj|dt_proj)_b\.', r'.mixer.directions.1.\1.'),
    (r'\.mixer\.(A_log|D)$', r'.mixer.directions.0.\1'),
    (r'\.mixer\.(conv1d|x_proj|dt_proj)\.', r'.mixer.directions.0.\1.'),
]
