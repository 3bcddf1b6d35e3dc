"""How far apart two results are, and how far apart they may be: the one tolerance table, shipped with the package."""

from __future__ import annotations

import torch
from torch import Tensor

# RMS error over RMS reference, forward: the same function in another summation order, against fp64 or fp32
TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 8e-3,
}
GRADIENT_FACTOR = 3.0  # a gradient sums over more terms than the output that it belongs to


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference over the RMS of `expected`, in fp64; `inf` if `actual` has values that are not finite.

    An `expected` that is all zero is compared absolutely: the result is then the RMS of `actual`.

    Raises:
        ValueError: If the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f'shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}')
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if not actual.numel():
        return 0.0
    if not bool(torch.isfinite(actual).all()):
        return float('inf')
    error, scale = (actual - expected).square().mean().sqrt(), expected.square().mean().sqrt()
    return float(error / scale if scale > 0 else error)


def tolerance(dtype: torch.dtype, grad: bool = False) -> float:
    """The largest `relative_error` allowed for results computed in `dtype`.

    Raises:
        ValueError: If there is no entry for `dtype`.
    """
    if dtype not in TOLERANCES:
        raise ValueError(f'no tolerance for {dtype}; there is one for {", ".join(map(str, TOLERANCES))}')
    return TOLERANCES[dtype] * (GRADIENT_FACTOR if grad else 1.0)


def assert_close(
    name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, grad: bool = False
) -> float:
    """Check `actual` against `expected` at the table's tolerance and return the error.

    Args:
        name: What is compared, for the message.
        actual: The result.
        expected: The reference, of any floating dtype.
        dtype: The dtype that `actual` was computed in; None: its own.
        grad: Whether these are gradients.

    Raises:
        AssertionError: If the error is above the tolerance; the message has both and the worst element.
        ValueError: If the shapes differ.
    """
    error = relative_error(actual, expected)
    limit = tolerance(actual.dtype if dtype is None else dtype, grad)
    if not error <= limit:
        worst = float((actual.detach().cpu().double() - expected.detach().cpu().double()).abs().max())
        raise AssertionError(f'{name}: relative error {error:.2e} is above {limit:.1e} (worst element off {worst:.2e})')
    return error
