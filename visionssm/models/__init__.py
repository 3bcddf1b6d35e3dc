"""Every model family; importing registers them with timm. And what reads weights: `load_checkpoint`."""

from visionssm.weights.checkpoint import load_checkpoint as load_checkpoint
from visionssm.weights.download import WeightsError as WeightsError

from . import a2mamba as a2mamba
from . import groupmamba as groupmamba
from . import lbvim as lbvim
from . import msvmamba as msvmamba
from . import plainmamba as plainmamba
from . import vim as vim
from . import vmamba as vmamba
