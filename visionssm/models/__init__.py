"""Every model family; importing registers them with timm."""

from . import vmamba as vmamba
