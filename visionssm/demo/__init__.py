"""The demo: real digits, a small backbone trained from scratch on a CPU, saved, loaded back, and drawn."""

from .run import DemoOptions, Trained, compare_scans, run_demo

__all__ = ['DemoOptions', 'Trained', 'compare_scans', 'run_demo']
