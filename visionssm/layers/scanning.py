"""How a model holds its scan order and changes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import register_notrace_function
from torch import nn

from visionssm.scans import ScanOrder, get_layer_scans, get_scan, scan_order

from .functional import FastLinears

ScanSpec = str | Mapping[str, Any] | ScanOrder
LayerScans = ScanSpec | Sequence[ScanSpec]  # one for all layers, or one for each

register_notrace_function(scan_order)


class ScanningModule(FastLinears):
    """A module that walks tokens along a scan order, which it holds as a string in `scan`."""

    def set_scan(self, order: ScanOrder) -> None:
        """Take another order with as many directions."""
        self.scan = order.to_json()


def check_local_window(local_window: int | None, by_length: bool = False) -> None:
    """Reject a window of the local backward scan that is none.

    Args:
        local_window: Steps per window; 0: no backward scan.
        by_length: Whether None is allowed: a window that follows from the length of the walk.

    Raises:
        ValueError: If it is neither an integer from 0 nor allowed.
    """
    if not (by_length and local_window is None) and (type(local_window) is not int or local_window < 0):
        raise ValueError(
            f'local_window is {local_window!r}; allowed are integers from 0{", and None" if by_length else ""}'
        )


def change_scan(model: nn.Module, scan: LayerScans, directions: int, layered: bool = False) -> list[ScanOrder]:
    """Give every scanning module of `model` the order `scan`.

    Args:
        model: The model; unchanged if this raises.
        scan: Name, dict, JSON string or `ScanOrder`.
        directions: Sets of scan parameters that the model has.
        layered: Whether `scan` may be a sequence, or a JSON list, with an order for each module.

    Returns:
        The orders of the modules.

    Raises:
        ValueError: If an order is unknown, has another number of directions, or if there is another number of orders.
    """
    modules = [module for module in model.modules() if isinstance(module, ScanningModule)]
    if layered:
        orders = get_layer_scans(scan, len(modules), directions)
    else:
        orders = [get_scan(scan, directions)] * len(modules)
    for order in orders:
        if order.directions != directions:
            raise ValueError(
                f'scan {order.to_json()} has {order.directions} directions, and the model has parameters for '
                f'{directions}; choose an order that offers {directions}, or build a new model with scan={order.name!r}'
            )
    for module, order in zip(modules, orders, strict=True):
        module.set_scan(order)
    return orders
