"""Vision state-space backbones in timm's manner: importing registers every model with `timm.create_model`."""

from . import models as models
from .version import __version__

__all__ = ['__version__', 'models']
