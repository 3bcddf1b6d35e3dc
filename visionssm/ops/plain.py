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
from .rows import na_av_by_formula, na_qk_by_formula, neighbors_by_formula

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
    if core:  # `export` notes what it relies on, dtypes and sizes: checks, and not core
        graph = program.graph_module.graph
        for check in (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default):
            for node in graph.find_nodes(op='call_function', target=check):
                graph.erase_node(node)
        graph.eliminate_dead_code()
        program.graph_module.recompile()
    return program


def _selective_scan(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    inputs = ScanInputs(*arguments[:-1])
    return *forward_at_once(inputs), inputs.new_starts()


def _neighbors(length: int, window: int, dilation: int, like: Tensor) -> Tensor:
    return neighbors_by_formula(length, window, dilation, like.device)


def _na_qk(q: Tensor, k: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    return na_qk_by_formula(q, k, window, dilation)


def _na_av(attn: Tensor, v: Tensor, window: int, dilation: Sequence[int], backend: str = '') -> Tensor:
    return na_av_by_formula(attn, v, window, dilation)
