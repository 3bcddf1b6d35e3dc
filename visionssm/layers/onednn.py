"""The former place of `Linear`, for code that imports it from here: it is torch's own."""

from .functional import Linear

__all__ = ['Linear']
