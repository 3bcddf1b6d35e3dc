"""The operators, their backends and their definition. Imports torch alone."""

from . import flops  # noqa: F401  tells torch what the operators count as
from .dispatch import BackendUnavailableError, available_backends, use_backend
from .mamba import selective_scan_fn
from .neighborhood import na_av, na_bias, na_qk, na_weights
from .products import attention, depthwise_at_once, has_other_linear, library_serves, linear, linear_gelu_at_once
from .reference import selective_scan_ref
from .selective_scan import scan_projected, scan_tokens, selective_scan

__all__ = [
    'BackendUnavailableError',
    'attention',
    'available_backends',
    'depthwise_at_once',
    'has_other_linear',
    'library_serves',
    'linear',
    'linear_gelu_at_once',
    'na_av',
    'na_bias',
    'na_qk',
    'na_weights',
    'scan_projected',
    'scan_tokens',
    'selective_scan',
    'selective_scan_fn',
    'selective_scan_ref',
    'use_backend',
]
