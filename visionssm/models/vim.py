"""Vision Mamba (Vim), https://arxiv.org/abs/2401.09417 (ICML 2024).

Official: https://github.com/hustvl/Vim at dd0358ad1e42701f22afbefa0717cc8825cf9f45, Apache-2.0.

Kept, as the published weights depend on it: the class token stands in the middle of the sequence, and the average over
directions. Kept for training: directions after the first start with torch's default step projection and a zero bias.
Fixed: position embeddings are resampled around the middle class token (upstream cuts row 0 instead and leaves the class
row in the grid), and any image size works, rectangles included (upstream asserts one size, or a square). The rotary
option turns every patch and never the class token (upstream leaves token 0 alone where the count is odd, whatever it
is), and an image's whole height and width are the same turn at any size.
"""

import torch
from timm.layers import (
    RotaryEmbeddingCat,
    apply_rot_embed_cat,
    calculate_drop_path_rates,
    register_notrace_function,
    resample_abs_pos_embed,
    trunc_normal_,
)
from timm.models import register_model
from torch import Tensor, nn

from visionssm.layers import MambaBlock, ScanSpec, StreamNorm, StridedPatchEmbed, at_least_fp32, check_image_size
from visionssm.scans import ScanOrder, get_scan, scan_order

from .builder import build, family_cfgs
from .isotropic import Isotropic, fit_pos_embed, init_mamba_stack
from .renames import rename

__all__ = ['Vim']

torch.fx.wrap('apply_rot_embed_cat')
torch.fx.wrap('at_least_fp32')
torch.fx.wrap('resample_abs_pos_embed')
torch.fx.wrap('scan_order')


@torch.fx.wrap
@register_notrace_function
def resample_pos_embed(pos_embed: Tensor, new_size: list[int], old_size: list[int]) -> Tensor:
    """Resize position embeddings whose middle row belongs to the class token; that row stays as it is.

    Args:
        pos_embed: (1, M + 1, D), the class row at M // 2.
        new_size: Grid wanted.
        old_size: Grid that the rows are for, M tokens.

    Returns:
        (1, M' + 1, D), the class row at M' // 2; bicubic, without antialiasing.
    """
    middle = (pos_embed.shape[1] - 1) // 2
    rows = torch.cat([pos_embed[:, :middle], pos_embed[:, middle + 1 :]], 1)
    rows = resample_abs_pos_embed(rows, new_size, old_size, 0, 'bicubic', False)
    new_middle = new_size[0] * new_size[1] // 2
    return torch.cat([rows[:, :new_middle], pos_embed[:, middle : middle + 1], rows[:, new_middle:]], 1)


@torch.fx.wrap
@register_notrace_function
def insert_token(order: Tensor, position: int, mirrored: list[bool]) -> Tensor:
    """Visiting orders of the patches to those of the sequence with a class token.

    Args:
        order: Patches as visited, (K, T).
        position: Where the token stands in the sequence.
        mirrored: For each direction, whether it is an earlier one backwards: then it meets the token as many steps from
            its end as that one from its start, and stays that one backwards.

    Returns:
        (K, T + 1); the token is visited at step T // 2.
    """
    half = order.shape[1] // 2
    order = order + (order >= position).to(order.dtype)
    token = torch.full_like(order[0, :1], position)
    walks = []
    for k, backwards in enumerate(mirrored):
        step = order.shape[1] - half if backwards else half
        walks.append(torch.cat([order[k, :step], token, order[k, step:]]))
    return torch.stack(walks)


def _mirrored(order: ScanOrder) -> list[bool]:
    """Which directions are an earlier one backwards; the same at every size, so any grid tells."""
    table = order.table(5, 7)
    return [any((table[k] == table[j, ::-1]).all() for j in range(k)) for k in range(order.directions)]


class VimBlock(MambaBlock):
    """`MambaBlock` that turns the stream by its position afterwards, if asked to.

    Args:
        dim: Channels.
        drop_path: Rate of dropping the branch, per sample.
        mixer_args: Arguments of `MambaMixer`.
        rotary: Whether it turns the stream.
    """

    def __init__(
        self, dim: int, drop_path: float, mixer_args: dict, rotary: bool = False, device=None, dtype=None
    ) -> None:
        super().__init__(dim, drop_path, mixer_args, device=device, dtype=dtype)
        self.rotary = rotary

    def step(self, x: Tensor, walk: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The stream (B, L, C) after the block, and the mixer's output.

        Args:
            x: Stream.
            walk: Visiting orders (K, T) and, with `rotary`, sines and cosines (L, 2 C).
        """
        y = self.mixer(self.norm(x), walk[0])
        x = x + self.drop_path(y)
        return apply_rot_embed_cat(x, walk[1]) if self.rotary else x, y

    def forward(self, x: Tensor, walk: list[Tensor]) -> Tensor:
        """Add the mixer's output to (B, L, C)."""
        return self.step(x, walk)[0]


class Vim(Isotropic):
    """Vision Mamba: patches with a class token in their middle, Mamba blocks that scan both ways.

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
        scan: Scan order of the patches: name, dict, JSON string or `ScanOrder`. If it does not offer two directions,
            the model has as many sets of scan parameters as it has directions. The class token is met half-way.
        local_window: Steps per window of LBMamba's local backward scan, with the same weights; 0: none.
        class_token: Whether there is one; upstream's segmentation and detection have none.
        rotary: Turn pairs of the stream's channels by row and column, after the embedding and after every block but the
            last, as upstream's segmentation (small) and detection do.
        features: What `forward_intermediates` gives: 'stream', or 'mixer' as in upstream's segmentation (tiny): what
            the mixer of a block adds to the stream.
        dynamic_img_size: Take images of any size, resampling position embeddings in every forward.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 at the first.

    Raises:
        ValueError: If an argument has a value that is not allowed; the message names it.
    """

    POOLS = ('token', 'avg', '')

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
        scan: ScanSpec = 'bidirectional',
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
        stride = patch_size if stride is None else stride
        if global_pool is None:
            global_pool = 'token' if class_token else 'avg'
        if not class_token:
            self.POOLS = ('avg', '')
        if rotary and embed_dim % 4:
            raise ValueError(f'embed_dim is {embed_dim!r}; with rotary=True allowed are multiples of 4')
        super().__init__(embed_dim, depth, stride, in_chans, num_classes, global_pool, features)
        dd = {'device': device, 'dtype': dtype}
        order = get_scan(scan, 2)
        self.scan_directions = order.directions
        self.scan = order.to_json()
        self.mirrored = _mirrored(order)
        self.patch_size = patch_size
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = StridedPatchEmbed(img_size, patch_size, stride, in_chans, embed_dim, **dd)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd)) if class_token else None
        tokens = self.patch_embed.num_patches + class_token
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim, **dd))
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
        self.blocks = nn.ModuleList(
            VimBlock(embed_dim, rate, mixer_args, rotary and i < depth - 1, **dd) for i, rate in enumerate(rates)
        )
        self.rope = None
        if rotary:  # angles of the 14x14 grid of pretraining, stretched to the grid at hand
            self.rope = RotaryEmbeddingCat(embed_dim, in_pixels=False, ref_feat_shape=[14, 14], **dd)
        self.norm = StreamNorm(embed_dim, eps=1e-5, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes, device, dtype)
        self._init_weights()

    @torch.jit.ignore
    def _init_weights(self) -> None:
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        init_mamba_stack(self)
        for block in self.blocks:
            for direction in block.mixer.directions[1:]:
                direction.dt_proj.reset_parameters()
                nn.init.zeros_(direction.dt_proj.bias)

    def _prepare(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        check_image_size(x, self.patch_size, None if self.dynamic_img_size else self.patch_embed.img_size)
        x = self.patch_embed(x)
        batch, height, width, _ = x.shape
        size, middle = [height, width], height * width // 2
        order = scan_order(self.scan, height, width, x)
        pos_embed = self.pos_embed
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            if self.dynamic_img_size:
                pos_embed = resample_pos_embed(pos_embed, size, self.patch_embed.grid_size)
            x = torch.cat([x[:, :middle], self.cls_token.expand(batch, -1, -1), x[:, middle:]], 1)
            order = insert_token(order, middle, self.mirrored)
        elif self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(pos_embed, size, self.patch_embed.grid_size, 0, 'bicubic', False)
        x = at_least_fp32(self.pos_drop(x + pos_embed))
        walk = [order]
        if self.rope is not None:
            angles = self.rope.get_embed(size)
            if self.cls_token is not None:
                still = torch.cat([torch.zeros_like(angles[:1, ::2]), torch.ones_like(angles[:1, ::2])], 1)
                angles = torch.cat([angles[:middle], still, angles[middle:]])
            x = apply_rot_embed_cat(x, angles)
            walk.append(angles)
        return x, walk

    def _pool(self, x: Tensor) -> Tensor:
        if self.global_pool == 'token':
            middle = (x.shape[1] - 1) // 2
            x = x[:, middle : middle + 1].squeeze(1)  # an index would tie a compiled graph to one size
        elif self.global_pool == 'avg':
            x = self._patches(x).mean(1)
        return x

    def _patches(self, x: Tensor) -> Tensor:
        if self.cls_token is not None:
            middle = (x.shape[1] - 1) // 2
            x = torch.cat([x[:, :middle], x[:, middle + 1 :]], 1)
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
        self.mirrored = _mirrored(get_scan(self.scan))

    @torch.jit.ignore
    def resample_pos_embed(self, pos_embed: Tensor, new_size: tuple[int, int], old_size: tuple[int, int]) -> Tensor:
        """Position embeddings for another grid; the class row, if there is one, stays in the middle."""
        if self.cls_token is None:
            return super().resample_pos_embed(pos_embed, new_size, old_size)
        return resample_pos_embed(pos_embed, new_size, old_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What upstream exempts beside 1-D parameters and biases, which timm's rule covers.

        `A_log` is decayed there: the marks that upstream sets on it are not read.
        """
        return {'pos_embed', 'cls_token'}

    @staticmethod
    def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: 'Vim') -> dict[str, Tensor]:
        """Upstream names to ours, one tensor for one; position embeddings of another grid are resampled.

        The class token, and its row of the position embeddings, are left out for a model without one.

        Raises:
            ValueError: If the grid that the position embeddings are for is not known.
        """
        if 'norm_f.weight' in state_dict or any('.mixer.A_b_log' in name for name in state_dict):
            state_dict = rename(state_dict, _RENAMES)
        if 'cls_token' in state_dict and model.cls_token is None:
            rows = state_dict['pos_embed']
            middle = (rows.shape[1] - 1) // 2
            state_dict = {**state_dict, 'pos_embed': torch.cat([rows[:, :middle], rows[:, middle + 1 :]], 1)}
            del state_dict['cls_token']
        return fit_pos_embed(state_dict, model)


_RENAMES = [
    (r'^backbone\.', ''),
    (r'^layers\.', 'blocks.'),
    (r'^norm_f\.', 'norm.'),
    (r'\.mixer\.A_b_log$', '.mixer.directions.1.A_log'),
    (r'\.mixer\.D_b$', '.mixer.directions.1.D'),
    (r'\.mixer\.(conv1d|x_proj|dt_proj)_b\.', r'.mixer.directions.1.\1.'),
    (r'\.mixer\.(A_log|D)$', r'.mixer.directions.0.\1'),
    (r'\.mixer\.(conv1d|x_proj|dt_proj)\.', r'.mixer.directions.0.\1.'),
]


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
