"""The operators in those of torch alone, for programs that run where this package is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram

from . import neighborhood, products, selective_scan  # noqa: F401  they define the operators
from .chunked import forward_at_once
from .inputs import ScanInputs
from .rows import neighbors_by_formula

_ops = torch.ops.visionssm


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """A table for `ExportedProgram.run_decompositions`: our operators as functions in torch's; sizes are free."""
    return {
        _ops.selective_scan.default: _selective_scan,
        _ops.neighbors.default: _neighbors,
        _ops.na_qk.default: _na_qk,
        _ops.na_av.default: _na_av,
        _ops.linear.default: F.linear,
    }


def plain_program(program: ExportedProgram, core: bool = False) -> ExportedProgram:
    """An exported program in operators of torch alone.

    Args:
        program: From `torch.export.export`.
        core: Core ATen alone, which converters to other runtimes ask for.

    Returns:
        The program; it gives the same numbers to rounding, and needs more memory: the states of all steps.
    """
    table = torch.export.default_decompositions() if core else {}
    table.update(decompositions())
    program = program.run_decompositions(table)
    if core:  # of casts, `export` notes what dtype it saw: a check, and not core
        graph = program.graph_module.graph
        for node in graph.find_nodes(op='call_function', target=torch.ops.aten._assert_tensor_metadata.default):
            graph.erase_node(node)
        program.graph_module.recompile()
    return program


def _selective_scan(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    inputs = ScanInputs(*arguments[:-1])
    return *forward_at_once(inputs), inputs.new_starts()


def _neighbors(length: int, window: int, dilation: int, like: Tensor) -> Tensor:
    return neighbors_by_formula(length, window, dilation, like.device)


def _neighborhood(x: Tensor, window: int, dilation: Sequence[int]) -> Tensor:
    """What every position sees of (B, heads, H, W, C): (B, heads, H, K, W, K, C)."""
    batch, heads, height, width, channels = x.shape
    rows = neighbors_by_formula(height, window, dilation[0], x.device)[0].reshape(-1)
    columns = neighbors_by_formula(width, window, dilation[1], x.device)[0].reshape(-1)
    seen = x.index_select(2, rows).index_select(3, columns)
    return seen.reshape(batch, heads, height, window, width, window, channels)


def _na_qk(q: Tensor, k: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    logits = (q[:, :, :, None, :, None] * _neighborhood(k, window, dilation)).sum(-1)  # [B, heads, H, K, W, K]
    return logits.transpose(3, 4).reshape(*q.shape[:4], window * window)


def _na_av(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    weights = attn.reshape(*v.shape[:4], window, window).transpose(3, 4)
    return (weights.unsqueeze(-1) * _neighborhood(v, window, dilation)).sum((3, 5))
