"""Attention over all tokens of a sequence."""

from torch import Tensor

from .functional import FastLinears, Linear, attention


class SelfAttention(FastLinears):
    """Multi-head attention of (B, L, C) with itself: timm's, by `visionssm.ops.attention`, which torch.func takes.

    Args:
        dim: Channels C.
        num_heads: Heads; they divide `dim`.
        qkv_bias: Whether the projection to queries, keys and values has a bias.

    Raises:
        ValueError: If they do not.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, device=None, dtype=None) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f'num_heads is {num_heads!r}; allowed are divisors of the {dim} channels')
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))
