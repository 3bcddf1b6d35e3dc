"""What pyramids and models of one resolution share: a scan order that can change, and what dense heads need to know."""

import torch
from torch import nn

from visionssm.layers import LayerScans, SelectiveSSM, change_scan, whole_side
from visionssm.scans import get_scan, layer_scans_to_json

from .builder import record_args


class ScanningBackbone(nn.Module):
    """A model that walks tokens: `scan` is its order as a string, `scan_directions` its number of parameter sets.

    Attributes:
        embedding: Name of the module that reads images.
        final_norm: Pattern of the names, upstream's and ours, of the weights of the norm before the classifier, if the
            authors' detectors and segmenters put it on the last map; its group is the rest of a name.
        out_norm_eps: Epsilon of the norms that detectors and segmenters put behind maps; None: that of the final norm.
        shared_directions: Whether directions share all parameters, so that a scan may have any number of them.
        layered_scans: Whether each layer may have a scan order of its own; `scan` is a list then, if they differ.
        takes_adapter: Whether `PlainMambaAdapter` fits around the model.
    """

    embedding: str = ''
    final_norm: str = '$^'
    out_norm_eps: float | None = None
    shared_directions: bool = False
    layered_scans: bool = False
    takes_adapter: bool = False

    @torch.jit.ignore
    def set_scan(self, scan: LayerScans) -> None:
        """Walk along another scan order with as many directions, or any if they share; the weights stay as they are.

        Args:
            scan: Name, dict, JSON string or `ScanOrder`; with `layered_scans` also a sequence or a JSON list of them,
                one per layer.

        Raises:
            ValueError: If the order is unknown or has another number of directions.
        """
        directions = self.scan_directions
        if self.shared_directions:
            directions = get_scan(scan, directions).directions
        self.scan = layer_scans_to_json(change_scan(self, scan, directions, self.layered_scans))
        record_args(self, scan=self.scan)

    @torch.jit.ignore
    def scan_parameters(self, *leaves: str) -> set[str]:
        """The full names of these parameters of every `SelectiveSSM`."""
        scans = [name for name, module in self.named_modules() if isinstance(module, SelectiveSSM)]
        return {f'{name}.{leaf}' for name in scans for leaf in leaves}

    @torch.jit.ignore
    def whole_side(self, side: int) -> int:
        """The least side, from `side` on, of images that the model takes without leaving pixels out."""
        return whole_side(self.get_submodule(self.embedding), side)
