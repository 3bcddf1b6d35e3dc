"""The demo: real digits, a small backbone trained from scratch on a CPU, saved, loaded back, and drawn."""

from .run import compare_scans, run_demo
from .training import DemoOptions, Trained

__all__ = ['DemoOptions', 'Trained', 'compare_scans', 'run_demo']
