"""Vision state-space backbones in timm's manner: importing registers every model with `timm.create_model`."""

from .version import __version__

__all__ = ['__version__']
