"""Scan orders: named ways to visit the tokens of an H x W grid, as index tables. Needs numpy and torch alone."""

from . import _orders as _orders  # registers the built-in orders
from ._op import scan_order, step_moves
from ._plot import plot_scans
from ._registry import ScanOrder, ScanStrategy, get_scan, list_scans, register_scan

__all__ = [
    'ScanOrder',
    'ScanStrategy',
    'get_scan',
    'list_scans',
    'plot_scans',
    'register_scan',
    'scan_order',
    'step_moves',
]
