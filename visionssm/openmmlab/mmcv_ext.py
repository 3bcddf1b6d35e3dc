"""A stand-in for mmcv's compiled operators, so that mmcv-lite serves mmdet and mmseg on any current torch.

mmcv-lite has no `mmcv._ext`, and mmdet and mmseg import it. The import only needs the names to exist; what
Mask R-CNN, Cascade R-CNN, RetinaNet and UPerNet run is RoIAlign, NMS and, on GPUs, the focal loss, and torchvision has
those.
Importing this module puts such an extension into `sys.modules`, unless a compiled one is there, and lets mmengine read
its runner's checkpoints under torch's safe loading, so that `resume=True` works. Where visionssm is installed, mmcv
finds it by itself (`visionssm_mmcv`). Elsewhere, in any config,

    custom_imports = dict(imports=['visionssm.openmmlab.mmcv_ext'], allow_failed_imports=False)

or, in a script that imports `mmdet.apis` before it reads a config, `import visionssm.openmmlab.mmcv_ext`.

Every other operator raises `NotImplementedError` with its name when it is called. Results are those of compiled mmcv
2.1.0 on CPU (`tests/openmmlab/test_mmcv_ext.py` has recorded ones), and for the focal loss, which has no CPU form
there, those of mmdet's own definition; RoIAlign pools by averages only.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from visionssm_mmcv import EXTENSION, lacks_operators


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that non-maximum suppression keeps, by falling score.

    Args:
        boxes: Corners x1, y1, x2, y2, (N, 4).
        scores: (N,).
        iou_threshold: Boxes that overlap a kept one by more are dropped.
        offset: A box is x2 - x1 + offset wide.
    """
    from torchvision.ops import nms

    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of `input` (B, C, H, W) at `rois` (N, 5: image, x1, y1, x2, y2), written to `output`.

    Raises:
        NotImplementedError: If `pool_mode` is not average.
    """
    from torchvision.ops import roi_align

    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    input = _at_least_fp32(input)
    output.copy_(roi_align(input, rois.to(input.dtype), size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward`, written to `grad_input`.

    Raises:
        NotImplementedError: If `pool_mode` is not average.
    """
    from torchvision.ops import roi_align

    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    with torch.enable_grad():  # RoIAlign is linear in its input, so any input will do
        source = _at_least_fp32(torch.zeros_like(grad_input)).requires_grad_()
        output = roi_align(source, rois.to(source.dtype), size, spatial_scale, sampling_ratio, aligned)
    grad_input.copy_(torch.autograd.grad(output, source, grad_output.to(source.dtype))[0])


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of logits (N, C) for classes (N,), C being the background, to `output`; mmdet calls it on GPUs.

    Raises:
        NotImplementedError: If classes have weights.
    """
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of the sum of `sigmoid_focal_loss_forward`, written to `grad_input`.

    Raises:
        NotImplementedError: If classes have weights.
    """
    with torch.enable_grad():
        source = input.detach().requires_grad_()
        loss = _focal_loss(source, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, source)[0])


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    if weight.numel():
        raise NotImplementedError('sigmoid_focal_loss with weights of classes needs compiled mmcv')
    classes = input.shape[1]
    truth = one_hot(target, classes + 1)[:, :classes]
    return sigmoid_focal_loss(input, truth.to(input.dtype), alpha, gamma)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def get_compiler_version() -> str:
    """What mmcv reports of its environment."""
    return 'none: torchvision operators through visionssm.openmmlab.mmcv_ext'


def get_compiling_cuda_version() -> str:
    """As `get_compiler_version`."""
    return get_compiler_version()


def install() -> bool:
    """Put the stand-in in place, unless a compiled `mmcv._ext` is there.

    Returns:
        Whether the stand-in is in use.

    Raises:
        ImportError: If there is no mmcv, or no torchvision to stand in.
    """
    present = sys.modules.get(EXTENSION)
    if present is not None:
        return isinstance(present, _StandIn)
    if importlib.util.find_spec('mmcv') is None:
        raise ImportError('mmcv is missing: pip install "visionssm[openmmlab]", or mmcv-lite==2.1.0 alone')
    if not lacks_operators():
        return False
    if importlib.util.find_spec('torchvision') is None:
        raise ImportError('this mmcv has no compiled operators, and torchvision stands in for them: pip install it')
    module = _StandIn(EXTENSION, __doc__)
    module.__spec__ = ModuleSpec(EXTENSION, None)  # mmcv asks for it
    for operator in (
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    ):
        setattr(module, operator.__name__, operator)
    sys.modules[EXTENSION] = module
    return True


class _StandIn(ModuleType):
    """Every operator by name; those that it can't compute say so when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(
                f'{name} is an operator of compiled mmcv, which the stand-in for mmcv-lite does not have: choose a '
                'model without it, or build mmcv with its operators (MMCV_WITH_OPS=1)'
            )

        return refuse


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "roi_align with pool_mode='max' needs compiled mmcv; the stand-in for mmcv-lite has 'avg'"
        )


def read_runner_checkpoints() -> None:
    """Let mmengine's runner read what it stores beside weights, its log and random seeds, by torch's safe loading.

    Allowed are mmengine's `HistoryBuffer` and numpy's arrays and scalars of plain numbers, in checkpoint files that
    mmengine loads and nowhere else; the functions that the log refers to are looked up on that class alone.

    Raises:
        ImportError: If there is no mmengine.
    """
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

    def method(owner: type, name: str) -> Any:
        if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
            raise ValueError(f'a checkpoint asks for {name!r} of {owner!r}, which is not allowed')
        return getattr(owner, name)

    multiarray = sys.modules[np.zeros(1).__reduce__()[0].__module__]  # numpy.core's or numpy._core's, by version
    allowed = [
        HistoryBuffer,
        (method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', 'bool')},
        *((multiarray._reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
        *((multiarray.scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    ]

    @CheckpointLoader.register_scheme(prefixes='', force=True)
    def load_from_file(filename: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(allowed):
            return load_from_local(filename, map_location)


install()
read_runner_checkpoints()
