"""Scan orders: named ways to visit the tokens of an H x W grid, as index tables. Needs only numpy and torch."""

from . import orders as orders  # registers the built-in orders
from .op import scan_order, step_moves
from .plot import plot_scans
from .registry import (
    ScanOrder,
    ScanStrategy,
    get_layer_scans,
    get_scan,
    layer_scans_to_json,
    list_scans,
    register_scan,
)

__all__ = [
    'ScanOrder',
    'ScanStrategy',
    'get_layer_scans',
    'get_scan',
    'layer_scans_to_json',
    'list_scans',
    'plot_scans',
    'register_scan',
    'scan_order',
    'step_moves',
]
