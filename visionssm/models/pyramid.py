"""timm's contract for pyramids: stem, stages that halve the map, head."""

import torch
from timm.layers import ClassifierHead, trunc_normal_
from timm.models import checkpoint_seq
from torch import Tensor, nn

from visionssm.layers import spread

from .builder import take_indices
from .scanning import ScanningBackbone


def init_linear(module: nn.Module) -> None:
    """Start a linear layer as Swin's descendants do: normal of deviation 0.02, cut off at 2, and no bias."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:  # slow there, and nothing to fill
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Stage(nn.Module):
    """Downsampling, if any, then blocks at one resolution, and a norm where the family has one.

    Args:
        downsample: Module that halves the map, with `keep_size(dilation)` for `output_stride`, or an identity.
        blocks: Blocks in order.
        norm: Norm of the last block's map, which the next stage then reads; None: none.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage on (B, H, W, C)."""
        return self.norm(self.run_blocks(self.downsample(x)))

    def run_blocks(self, x: Tensor) -> Tensor:
        """Run the blocks, with checkpoints if asked to."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x

    @torch.jit.ignore
    def dilate(self, dilation: int) -> None:
        """Keep the resolution, and read as far as if it were halved; the weights stay as they are.

        Args:
            dilation: Distance of the pixels that the downsampling reads; convolutions of the blocks, and what else has
                a method `spread`, read twice as far.
        """
        self.downsample.keep_size(dilation)
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                spread(module, 2 * dilation)
            elif hasattr(module, 'spread'):
                module.spread(2 * dilation)


class Pyramid(ScanningBackbone):
    """Stem, stages, norm on the map, pooling, linear classifier; maps are (B, H, W, C).

    Args:
        stem: Images to the first map.
        stages: `Stage` modules; each after the first halves the map.
        norm: Norm of the last map.
        dims: Channels per stage.
        reduction: Pixels per token along a side after the stem.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: '' or a pooling of `timm.layers.SelectAdaptivePool2d`.
        drop_rate: Dropout before the classifier.
        output_stride: Pixels per token of the last map, one of `output_strides`: stages that would go beyond keep the
            resolution, and their convolutions are dilated instead. The weights are the same.

    Attributes:
        output_strides: What `output_stride` may be.

    Raises:
        ValueError: If `output_stride` is none of these.
    """

    embedding = 'stem'
    output_strides: tuple[int, ...] = (8, 16, 32)

    def __init__(
        self,
        stem: nn.Module,
        stages: list[nn.Module],
        norm: nn.Module,
        dims: list[int],
        reduction: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        output_stride: int = 32,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if output_stride not in self.output_strides:
            *most, last = self.output_strides
            allowed = f'{", ".join(map(str, most))} and {last}'
            raise ValueError(f'output_stride is {output_stride!r}; allowed are {allowed}')
        strides, dilation = [reduction], 1
        for stage in stages[1:]:
            keep = strides[-1] >= output_stride
            strides.append(strides[-1] * (1 if keep else 2))
            if keep:
                stage.dilate(dilation)
                dilation *= 2
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.output_fmt = 'NHWC'
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {
                'num_chs': dim,
                'reduction': strides[i],
                'module': f'stages.{i}',
                **({} if isinstance(stages[i].norm, nn.Identity) else {'norm': f'stages.{i}.norm'}),
            }
            for i, dim in enumerate(dims)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = self._make_head(num_classes, global_pool, device, dtype)

    def _make_head(self, num_classes: int, global_pool: str, device, dtype) -> nn.Module:
        return ClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=self.drop_rate,
            input_fmt='NHWC',
            device=device,
            dtype=dtype,
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the normed last map (B, H', W', D)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a map; with `pre_logits` only pool."""
        return self.head(x, pre_logits=pre_logits)

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
        """Maps after stages.

        Args:
            x: Images, (B, C, H, W).
            indices: Stages wanted: the last n if an int, all if None.
            norm: Apply the final norm to the last stage's map, the only one that it fits.
            stop_early: Do not run stages behind the last one wanted.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: Leave out the final features.

        Returns:
            (final features as `forward_features` gives them, maps), or the maps.

        Raises:
            ValueError: If a stage does not exist, or the format is neither.
        """
        if output_fmt not in ('NCHW', 'NHWC'):
            raise ValueError(f'output_fmt is {output_fmt!r}; allowed are NCHW and NHWC')
        taken, highest = take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        maps = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: highest + 1] if stop_early else self.stages):
            x = stage(x)
            if i in taken:
                y = self.norm(x) if norm and i == last else x
                maps.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == 'NCHW' else y)
        if intermediates_only:
            return maps
        return (self.norm(x) if not stop_early or highest == last else x), maps

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove stages behind the last one wanted, with the norm and head if they no longer fit or if asked to."""
        taken, highest = take_indices(len(self.stages), indices)
        cut = highest < len(self.stages) - 1
        self.stages = self.stages[: highest + 1]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[highest]['num_chs']
        if cut or prune_norm:
            self.norm = nn.Identity()
        if cut or prune_head:
            self.reset_classifier(0, '')
        return taken

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Set a new classifier for `num_classes` (0: none), and pooling unless None, on the same device and dtype."""
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = self._make_head(num_classes, pool, like.device, like.dtype).train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns of parameter groups, for layer-wise learning rates."""
        fine = [
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^stages\.(\d+)\.downsample', (0,)),
            (r'^stages\.(\d+)\.norm', (99999,)),  # with the last block
            (r'^norm', (99999,)),
        ]
        return {'stem': r'^stem', 'blocks': r'^stages\.(\d+)' if coarse else fine}
