"""Several models or scan orders on one's own data: accuracy, speed, memory, in a table and a picture."""

from .report import Row
from .run import Comparison, compare

__all__ = ['Comparison', 'Row', 'compare']
