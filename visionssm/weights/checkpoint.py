"""Read checkpoints of any repository without running any code in them, and say clearly what does not fit."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visionssm.files import open_regular

from . import quantized
from .torch_file import check_expansion, check_torch_file

_logger = logging.getLogger(__name__)

# where training scripts keep the weights; 'model' comes first: it is what upstream evaluates (Vim), or already holds
# the averaged weights (VMamba)
CONTAINERS = ('model', 'state_dict', 'model_ema', 'state_dict_ema', 'net')
# upstream's names of what detectors and segmenters put behind a backbone, on each map
_OUTPUTS = re.compile(r'backbone\.(?:outnorm_?|out_map_|norm_layer)\d+')
_PREFIXES = ('module.', '_orig_mod.')  # left by DistributedDataParallel and torch.compile


class _Discarded:
    """Stand-in for a value that is not a weight: swallows what the pickle says about it and runs nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# what training scripts store besides the weights, by the name in the pickle; none of it is imported or run
_GLOBALS: tuple[Callable | tuple[Callable, str], ...] = (
    argparse.Namespace,  # Vim, DeiT: the command line
    (OrderedDict, 'yacs.config.CfgNode'),  # VMamba, MSVMamba: the configuration
    (_Discarded, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_Discarded, 'builtins.getattr'),  # its methods, by name; nothing is looked up
    *(
        (_Discarded, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name in ('scalar', '_reconstruct')
    ),
    (_Discarded, 'numpy.ndarray'),
    (_Discarded, 'numpy.dtype'),
)


_DISCARDED = tuple(
    entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}' for entry in _GLOBALS
)
_HEADER_BYTES = 1 << 24  # 100,000 tensors


def checkpoint_globals() -> AbstractContextManager:
    """Within the context, let `torch.load(weights_only=True)` skip the known non-tensor contents.

    A context, not `add_safe_globals` at import: programs that load their own files keep torch's rules.
    """
    return torch.serialization.safe_globals(list(_GLOBALS))


def load_checkpoint(path: str | Path, container: str | None = None, prefer: str = '') -> dict[str, Tensor]:
    """The weights in a checkpoint file, with wrapper prefixes removed.

    Args:
        path: A `.safetensors` file, or anything that `torch.save` wrote. No code in it is run.
        container: As of `unwrap`.
        prefer: As of `unwrap`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or not a checkpoint, has contents that are not allowed, or holds no weights.
        MissingExtraError: If the weights are quantised and there is no torchao that reads them.
    """
    path = Path(path)
    content = read_file(path)
    if path.suffix == '.safetensors' and (metadata := quantized.read_metadata(path)):
        try:
            content = quantized.unflatten(content, metadata)
        except ValueError as error:
            raise ValueError(f'{path} cannot be read as a checkpoint: {error}') from None
    return unwrap(content, str(path), container, prefer)


def read_file(path: Path) -> Any:
    """All that is in a checkpoint file; no code in it is run, and it can't ask for more memory than it has bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or not a checkpoint, or has contents that are not allowed.
    """
    if not path.exists():
        raise FileNotFoundError(f'no checkpoint file at {path}')
    with open_regular(path) as stream:  # a file without read permission fails here
        start = stream.read(8)
        size = stream.seek(0, os.SEEK_END)
    if not start:
        raise ValueError(f'{path} is empty')
    try:
        if path.suffix == '.safetensors':
            if int.from_bytes(start, 'little') > _HEADER_BYTES:
                raise SafetensorError(f'its header has more than {_HEADER_BYTES} bytes')
            return load_file(path)
        zipped = check_torch_file(path, _DISCARDED)
        with checkpoint_globals():  # mapped: tensors that do not fit the model are never read
            content = torch.load(str(path), map_location='cpu', weights_only=True, mmap=zipped)
        check_expansion(content, size)
        return content
    except MemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(f'{path} is not a complete safetensors file: {error}') from None
    except Exception as error:  # foreign bytes make the unpickler raise nearly anything; none of it helps the reader
        raise ValueError(f'{path} cannot be read as a checkpoint: {_reason(error)}') from None


def _reason(error: Exception) -> str:
    if type(error) is ValueError:
        return str(error)
    if refused := re.search(r'GLOBAL ([\w.]+) w(?:as|hose) ', str(error)):
        return f'it asks to run {refused[1]}, which is not allowed in a file of weights'
    return f'it is damaged, or was not written by torch.save ({type(error).__name__})'


def unwrap(
    content: Any, source: str = 'the checkpoint', container: str | None = None, prefer: str = ''
) -> dict[str, Tensor]:
    """The state dict inside a training checkpoint: its container, without wrapper prefixes.

    Args:
        content: What the file held: a state dict, or a dict with one under a name of `CONTAINERS`.
        source: What to call it in errors.
        container: The name under which the weights must be; None: `prefer`, `CONTAINERS`, or the whole.
        prefer: The name to try first, as `container_of` a model says.

    Raises:
        ValueError: If there is no such container, no weights, or values that are not tensors among them.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f'{source} holds a {type(content).__name__}, not a dict of weights')
    if container is not None and not isinstance(content.get(container), Mapping):
        raise ValueError(
            f'{source} has no weights under {container!r}; it holds {_some([str(key) for key in content])}'
        )
    names = (prefer, *CONTAINERS) if container is None else (container,)
    weights = next((content[name] for name in names if isinstance(content.get(name), Mapping)), content)
    if not weights:
        raise ValueError(f'{source} holds no weights')
    other = [str(key) for key, value in weights.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f'{source} holds values that are not weights: {_some(other)}')
    state_dict = {}
    for key, value in weights.items():
        while key.startswith(_PREFIXES):
            key = key.partition('.')[2]
        state_dict[key] = value
    return state_dict


def inside_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is under `backbone.`, and a classifier under `head.`, prefixes kept; the whole if nothing is."""
    whole = not any(name.startswith('backbone.') for name in state_dict)
    return {name: x for name, x in state_dict.items() if whole or name.startswith(('backbone.', 'head.'))}


def strip_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`inside_backbone`, without the prefix `backbone.`."""
    return {name.removeprefix('backbone.'): x for name, x in inside_backbone(state_dict).items()}


def backbone_weights(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of an OpenMMLab detector's or segmenter's weights that our models have a place for.

    That is everything under `backbone.`, prefix kept, except the norms and projections of its output maps. Other state
    dicts, such as that of a backbone alone, are returned unchanged.
    """
    inside = inside_backbone(state_dict)
    others = {name.partition('.')[0] for name in state_dict if name not in inside}
    if not others:
        return state_dict
    _logger.info('left out, as they are not part of the backbone: %s', _some(sorted(others)))
    outputs = sorted({match[0] for name in inside if (match := _OUTPUTS.match(name))})
    if outputs:
        _logger.warning('left out, so maps lack them: %s', _some(outputs))
    return {name: x for name, x in inside.items() if not _OUTPUTS.match(name)}


def same_layout(one: Iterable[int], other: Iterable[int]) -> bool:
    """Whether two shapes hold the same numbers in the same order by merging neighbouring axes of one of them.

    True of a 1x1 convolution and a linear layer, or (K, R, D) and (K * R, D); not of (2, 6) and (6, 2).
    """
    ends = [set(accumulate(shape, mul)) | {1} for shape in (one, other)]
    return prod(one) == prod(other) and (ends[0] <= ends[1] or ends[1] <= ends[0])


def fit_shapes(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same numbers in the shapes of `model` where these differ by `same_layout`."""
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    return {
        name: x.reshape(shapes[name]) if _fits_otherwise(x.shape, shapes.get(name)) else x
        for name, x in state_dict.items()
    }


def _fits_otherwise(shape: Sequence[int], wanted: Sequence[int] | None) -> bool:
    return wanted is not None and shape != wanted and same_layout(shape, wanted)


def check_fit(state_dict: Mapping[str, Tensor], model: nn.Module, optional: Mapping[str, str] | None = None) -> None:
    """Compare names and shapes with those of `model`.

    Args:
        state_dict: Weights under the model's names.
        model: The model.
        optional: Prefixes of names that are not compared, each with its meaning; missing ones are logged.

    Raises:
        ValueError: If they differ; the message groups missing, unexpected and misshapen names.
    """
    optional = optional or {}
    skipped = tuple(optional)
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in state_dict.items()}
    new = [
        f'{start}* ({meaning})'
        for start, meaning in optional.items()
        if any(name.startswith(start) for name in expected.keys() - found.keys())
    ]
    problems = {
        'missing': [name for name in expected if name not in found and not name.startswith(skipped)],
        'unexpected': [name for name in found if name not in expected and not name.startswith(skipped)],
        'of another shape': [
            f'{name} {shape} for {expected[name]}'
            for name, shape in found.items()
            if expected.get(name, shape) != shape and not name.startswith(skipped)
        ],
    }
    lines = [f'{len(names)} {kind}: {_some(names)}' for kind, names in problems.items() if names]
    if not lines:
        if new:
            _logger.info('not in the weights, as expected: %s', ', '.join(new))
        return
    if new:
        lines.append(f'missing as expected: {", ".join(new)}')
    if any('outnorm' in name for name in problems['unexpected']):
        lines.append('outnorm* belongs to a detection or segmentation backbone: remove it, or load it in that wrapper')
    scan = getattr(model, 'scan', None)
    if scan is not None:
        lines.append(f'the model was built with scan={scan}; scan parameters have one set per direction of the scan')
    raise ValueError(f'weights do not fit {type(model).__name__}:\n  ' + '\n  '.join(lines))


def _some(names: list[str], most: int = 8) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
