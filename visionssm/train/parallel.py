"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from visionssm.catalog.machine import check_device

from .loop import Alone


class Processes(Alone):
    """This process among those that train together.

    Args:
        rank: Its number.
        count: How many there are.
        device: Where it computes.
    """

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device
        self._module: nn.Module | None = None

    @property
    def together(self) -> bool:
        """Whether torchrun started this process."""
        return dist.is_initialized()

    def sum(self, values: list[float]) -> list[float]:
        """Sum over the processes."""
        if not self.together:
            return values
        x = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(x)
        return x.tolist()

    def mean(self, values: list[float]) -> list[float]:
        """Average over the processes."""
        return [value / self.count for value in self.sum(values)]

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank."""
        if not self.together:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.together:
            dist.barrier()

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of the first, such as statistics of batch norms: those are in checkpoints."""
        if self.together:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def shard(self, model: nn.Module) -> None:
        """Spread the parameters of `model` over the processes (FSDP), block by block."""
        mesh = init_device_mesh(self.device.type, (self.count,))
        for name, module in model.named_modules():
            if name.rpartition('.')[0].endswith('blocks'):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> Callable:
        """`model` with gradients that are averaged over the processes; one that `shard` spread does so already."""
        if self.together and not isinstance(model, FSDPModule):
            devices = [self.device] if self.device.type == 'cuda' else None
            model = DistributedDataParallel(model, device_ids=devices)
        self._module = model
        return model

    def synchronising(self, last: bool) -> AbstractContextManager:
        """While it lasts, gradients are exchanged only if `last`."""
        if isinstance(self._module, FSDPModule):
            self._module.set_requires_gradient_sync(last)
        elif isinstance(self._module, DistributedDataParallel) and not last:
            return self._module.no_sync()
        return nullcontext()


@contextmanager
def start_processes(device: str = 'auto') -> Iterator[Processes]:
    """This process, and its group if torchrun started it, for as long as the context lasts.

    Args:
        device: A device of torch, or 'auto': CUDA if there is one, else the CPU.

    Raises:
        ValueError: If there is no such device here.
    """
    local = int(os.environ.get('LOCAL_RANK', 0))
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    place = check_device(device)
    if place.type == 'cuda':
        place = torch.device('cuda', local if place.index is None else place.index)
        torch.cuda.set_device(place)
    if not dist.is_torchelastic_launched():
        yield Processes(0, 1, place)
        return
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group('nccl' if place.type == 'cuda' else 'gloo')
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        if ours:
            dist.destroy_process_group()


# whole tensors on the CPU, wherever and however they are sharded: a checkpoint fits any number of processes
_SAVED = StateDictOptions(full_state_dict=True, cpu_offload=True)


def model_state(model: nn.Module) -> dict[str, Any]:
    """Weights, complete on the first process; all processes must call it."""
    return get_model_state_dict(model, options=_SAVED)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of the optimiser by parameter name; called like `model_state`."""
    return get_optimizer_state_dict(model, optimizer, options=_SAVED)


def load_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Restore what `model_state` returned."""
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore what `optimizer_state` returned."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
