"""Lets mmdet and mmseg be imported with mmcv-lite before anything else is, as their own pages do.

mmcv-lite lacks the compiled module `mmcv._ext`, which mmdet and mmseg import; `visionssm.openmmlab.mmcv_ext` stands in
for it, and this sees to it that it is found. torch calls `register` at the end of `import torch`, as it does with every
entry point of the group `torch.backends`, and mmcv imports torch before its operators. All that happens then is one
look for mmcv. Where there is none, or one with compiled operators, nothing is changed; else a finder for that one name
goes behind all others. Nothing of `visionssm` is imported before the operators are.

`TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns this off; then `import visionssm.openmmlab` must come first.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

EXTENSION = 'mmcv._ext'


def lacks_operators() -> bool:
    """Whether there is an mmcv without compiled operators; it is not imported for that."""
    try:
        mmcv = find_spec('mmcv')
    except (ImportError, ValueError):  # a stub in `sys.modules`, say: nothing to mend
        return False
    return mmcv is not None and PathFinder.find_spec(EXTENSION, mmcv.submodule_search_locations) is None


def register() -> None:
    """Have the stand-in found as `mmcv._ext` where mmcv lacks its own."""
    if lacks_operators() and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # the last one: a real extension would be found before


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(EXTENSION, self) if name == EXTENSION else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        import_module('visionssm.openmmlab.mmcv_ext').install()  # which imports this module
        return sys.modules[EXTENSION]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: it is whole."""
