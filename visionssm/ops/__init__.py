"""The scan op, its backends and its definition. Imports torch alone."""

from ._dispatch import BackendUnavailableError, available_backends, use_backend
from ._reference import selective_scan_ref
from .selective_scan import scan_tokens, selective_scan, selective_scan_fn

__all__ = [
    'BackendUnavailableError',
    'available_backends',
    'scan_tokens',
    'selective_scan',
    'selective_scan_fn',
    'selective_scan_ref',
    'use_backend',
]
