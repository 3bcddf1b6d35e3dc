"""Neighbourhood attention in torch, on any device, by whole rows.

All columns of the K key rows of a query row in one matrix product, from which the K columns of each query are picked
(or, for values, into which they are put). That is W / K times the arithmetic that is needed and far faster than
gathering K * K keys per query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def neighbors(length: int, window: int, dilation: int, device: torch.device) -> Tensor:
    """Positions of the keys, and rows of the bias table, of every query along an axis: (2, L, K) int64.

    Raises:
        ValueError: If the window is even, or the axis shorter than window * dilation.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f'window is {window}; it must be odd')
    if dilation < 1 or length < window * dilation:
        raise ValueError(
            f'a side of {length} with window {window} and dilation {dilation}: it must be at least their product, and '
            'the dilation at least 1'
        )
    with torch.inference_mode(False):  # the table outlives the call
        return neighbors_by_formula(length, window, dilation, torch.device('cpu')).to(device)


def neighbors_by_formula(length: int, window: int, dilation: int, device: torch.device) -> Tensor:
    """The same unchecked; `length` may be symbolic."""
    i = torch.arange(length, device=device)
    residue, p = i % dilation, i // dilation
    in_class = (length - residue + dilation - 1) // dilation
    start = torch.minimum((p - window // 2).clamp(min=0), in_class - window)
    steps = torch.arange(window, device=device)
    keys = residue[:, None] + dilation * (start[:, None] + steps)
    bias = (start - p + window - 1)[:, None] + steps
    return torch.stack([keys, bias])


def _seen(x: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """What every position sees of (B, heads, H, W, C): (B heads, H W, K K, C); sizes may be symbolic.

    Of four axes: with seven, A2Mamba gave NaN in OpenVINO 2026.4.
    """
    height, width, channels = x.shape[2:]
    rows = neighbors_by_formula(height, window, dilation[0], x.device)[0]
    columns = neighbors_by_formula(width, window, dilation[1], x.device)[0]
    keys = rows[:, None, :, None] * width + columns[:, None]  # [H, W, K, K]
    tokens = x.reshape(-1, height * width, channels)
    return tokens.index_select(1, keys.reshape(-1)).reshape(-1, height * width, window * window, channels)


def na_qk_by_formula(q: Tensor, k: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """`na_qk` by gathering keys, unchecked, for programs in plain operators; sizes may be symbolic."""
    seen = _seen(k, window, dilation)
    logits = seen @ q.reshape(-1, seen.shape[1], q.shape[4], 1)
    return logits.reshape(*q.shape[:4], window * window)


def na_av_by_formula(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """`na_av`, likewise."""
    seen = _seen(v, window, dilation)
    return (attn.reshape(-1, seen.shape[1], 1, window * window) @ seen).reshape(*v.shape)


class _Rows:
    """A stack of R = B * heads * H rows of W positions: which key rows and columns each query sees, in parts."""

    def __init__(self, x: Tensor, window: int, dilation: Sequence[int]) -> None:
        batch, heads, height, width = x.shape[:4]
        rows = neighbors(height, window, dilation[0], x.device)[0]
        first = torch.arange(0, batch * heads * height, height, device=x.device)
        self.key_rows = (first[:, None, None] + rows).flatten(0, 1)  # [R, K]
        self.columns = neighbors(width, window, dilation[1], x.device)[0].unsqueeze(1)  # [W, 1, K]
        self.window, self.width = window, width

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of rows with their key rows; a part's products fit the cache, or 256 MiB on a GPU."""
        count = (1 << 19 if self.key_rows.device.type == 'cpu' else 1 << 26) // (self.window * self.width**2)
        for begin in range(0, len(self.key_rows), max(count, 1)):
            part = slice(begin, begin + max(count, 1))
            yield part, self.key_rows[part]

    def take(self, tokens: Tensor, key_rows: Tensor) -> Tensor:
        """All positions of the key rows of a part, (R, K * W, C)."""
        taken = tokens.index_select(0, key_rows.flatten())  # copies whole rows, unlike indexing
        return taken.view(len(key_rows), -1, tokens.shape[2])

    def pick(self, products: Tensor) -> Tensor:
        """Of (R, W, K * W) products with whole rows, those with the K columns of each query: (R, W, K, K)."""
        index = self.columns.expand(len(products), -1, self.window, -1)
        return products.unflatten(2, (self.window, self.width)).gather(3, index)

    def spread(self, attn: Tensor) -> Tensor:
        """The transpose of `pick`: (R, W, K * K) weights to (R, W, K * W), 0 elsewhere."""
        attn = attn.unflatten(2, (self.window, self.window))
        index = self.columns.expand(len(attn), -1, self.window, -1)
        return attn.new_zeros(*attn.shape[:3], self.width).scatter_(3, index, attn).flatten(2)


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)  # the op's result has the dtype of its input


def na_qk(q: Tensor, k: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    rows = _Rows(q, window, dilation)
    queries, keys = q.flatten(0, 2), k.flatten(0, 2)
    out = q.new_empty(*queries.shape[:2], window, window)
    with _no_autocast(q):
        for part, key_rows in rows.parts():
            products = torch.bmm(queries[part], rows.take(keys, key_rows).transpose(1, 2))
            out[part] = rows.pick(products)
    return out.view(*q.shape[:4], window * window)


def na_av(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    rows = _Rows(v, window, dilation)
    weights, values = attn.flatten(0, 2), v.flatten(0, 2)
    out = v.new_empty(values.shape)
    with _no_autocast(v):
        for part, key_rows in rows.parts():
            out[part] = torch.bmm(rows.spread(weights[part]), rows.take(values, key_rows))
    return out.view(v.shape)


def na_av_transposed(attn: Tensor, x: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """As the operator."""
    rows = _Rows(x, window, dilation)
    weights, tokens = attn.flatten(0, 2), x.flatten(0, 2)
    # half precision would lose small terms in sums over a window
    out = torch.zeros_like(
        tokens, dtype=torch.promote_types(x.dtype, torch.float32), memory_format=torch.contiguous_format
    )
    with _no_autocast(x):
        for part, key_rows in rows.parts():
            terms = torch.bmm(rows.spread(weights[part]).transpose(1, 2), tokens[part])
            out.index_add_(0, key_rows.flatten(), terms.unflatten(1, (window, -1)).flatten(0, 1).to(out.dtype))
    return out.to(x.dtype).view(x.shape)
