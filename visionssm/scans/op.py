"""The order table as a torch op, so that models with symbolic sizes can be compiled, exported, scripted and traced."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .formulas import Size, formula_table
from .registry import get_scan


def scan_order(spec: str, height: int, width: int, like: Tensor) -> Tensor:
    """The table of a scan order as a tensor, (K, T) int32 on the device of `like`.

    Args:
        spec: A name, or what `ScanOrder.to_json` returns.
        height: Rows of the grid, from 1.
        width: Columns of the grid, from 1.
        like: Tensor on the device to use; its values are not read, and it gets no gradient.

    Raises:
        ValueError: If the order is unknown, a size is below 1, or an ONNX file is to take any size and the order has no
            formula.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out what stands under this alone
        if torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            table = _exported_table(spec, height, width, like)
            if table is not None:
                return table
        if _is_plain(like):
            return _new_table(spec, height, width, like.device)
    return torch.ops.visionssm.scan_order(spec, height, width, like.detach())


def _is_plain(like: Tensor) -> bool:
    """Whether no program is made and no transform or mode watches operators, the way to which takes 50 us.

    A mode that watches functions sees a copy of the table alone.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(like) not in (Tensor, torch.nn.Parameter):
        return False
    if torch._C._are_functorch_transforms_active():  # which would wrap what is remembered
        return False
    return not (is_in_torch_dispatch_mode() or torch.autograd._profiler_enabled() or like.is_meta)


def _exported_table(spec: str, height: Size, width: Size, like: Tensor) -> Tensor | None:
    """The table as a constant or by a formula, so that exported programs need no op; None where the op has to stay."""
    order = get_scan(spec)
    if isinstance(height, int) and isinstance(width, int):
        return torch.tensor(order.table(height, width), device=like.device)
    table = formula_table(order, height, width, like)
    if table is not None or not torch.onnx.is_in_onnx_export():
        return table
    if not isinstance(height, Tensor):
        raise ValueError(f'scan {order.name!r} has no formula for images of any size; export it with a fixed size')
    # a tracer does not tell whether the size is fixed: at another one, the reshape fails
    at = int(height), int(width)
    anchor = torch.cat([torch.zeros(size).reshape(known) for size, known in zip((height, width), at, strict=True)])
    return torch.tensor(order.table(*at), device=like.device) + anchor.sum().to(like.device, torch.int32)


def step_moves(order: Tensor, width: int, height: int | None = None) -> Tensor:
    """PlainMamba's direction code of each step: 1 right, 2 left, 3 up, 4 down; 0 for the first step and for jumps.

    Args:
        order: Token positions, (K, T), integer.
        width: Columns of the grid.
        height: Its rows, where a zero token may be visited: going to it and from it are jumps.

    Returns:
        Codes, (K, T) int64.

    Source: arXiv:2403.17695 (PlainMamba, direction-aware updating).
    """
    row, column = torch.div(order, width, rounding_mode='floor'), order % width
    down, right = row[:, 1:] - row[:, :-1], column[:, 1:] - column[:, :-1]
    moves = (down == 0) * ((right == 1) * 1 + (right == -1) * 2) + (right == 0) * ((down == -1) * 3 + (down == 1) * 4)
    if height is not None:
        on_grid = row < height
        moves = moves * (on_grid[:, 1:] & on_grid[:, :-1])
    return torch.nn.functional.pad(moves, (1, 0))


@lru_cache(maxsize=32)
def _device_table(spec: str, height: int, width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the table outlives the call
        return torch.tensor(get_scan(spec).table(height, width), device=device)


def _new_table(spec: str, height: int, width: int, device: torch.device) -> Tensor:
    return _device_table(spec, height, width, device).clone()  # not the same memory twice: callers may write into it


@torch.library.custom_op('visionssm::scan_order', mutates_args=())
def _scan_order_op(spec: str, height: int, width: int, like: Tensor) -> Tensor:
    return _new_table(spec, height, width, like.device)


@_scan_order_op.register_vmap
def _scan_order_vmap(info, dims, spec, height, width, like):
    return torch.ops.visionssm.scan_order(spec, height, width, like.select(dims[3], 0)), None


@_scan_order_op.register_fake
def _scan_order_fake(spec, height, width, like):
    order = get_scan(spec)
    return like.new_empty((order.directions, order.steps(height, width)), dtype=torch.int32)
