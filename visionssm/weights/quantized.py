"""Quantised weights as torchao has them, in safetensors files under torchao's own names and metadata.

Nothing in such a file is run: of its metadata, what describes an `Int8Tensor` is checked and read, all else refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from visionssm.extras import MissingExtraError, check_extra
from visionssm.layers import SelectiveSSM

LEAST_TORCHAO = (0, 18)  # earlier ones lack static ranges of inputs, or their own files of them
_TENSORS = 'tensor_names'  # torchao's key for the list of quantised tensors
_PACKED = 'visionssm.int4'  # ours, for the list of those whose values lie two to a byte
_ROWS = 'visionssm.int8'  # ours, for the list of what is floating point to a model, but lies there in 8 bits
_ROW_SCALE = '_scale'  # after the name of one of these
LEAST_ROW = 8  # values that share a scale, from which on they take fewer bytes than in half precision
_TYPES = {'torch.dtype', 'QuantizeTensorToInt8Kwargs', 'PerRow', 'PerTensor', 'MappingType'}
_PARTS = {'qdata', 'scale', 'zero_point', 'act_quant_scale', 'act_quant_zero_point', 'act_pre_scale'}


def check_torchao() -> None:
    """Make sure that torchao is there, and new enough.

    Raises:
        MissingExtraError: If it is not.
    """
    check_extra('quantisation', 'quantize', 'torchao')
    found = version('torchao')
    if tuple(int(part) for part in found.split('.')[:2]) < LEAST_TORCHAO:
        least = '.'.join(map(str, LEAST_TORCHAO))
        raise MissingExtraError(
            f'quantisation needs torchao {least} or later, here is {found}: pip install "visionssm[quantize]"'
        )
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns, as it is imported, of what its users can't change
    try:
        import torchao.prototype.safetensors.safetensors_support  # noqa: F401
        import torchao.quantization  # noqa: F401
    finally:
        logging.disable(disabled)


def is_quantized(x: Any) -> bool:
    """Whether `x` is a tensor of torchao's."""
    return isinstance(x, Tensor) and type(x).__module__.partition('.')[0] == 'torchao'


def row_scales(x: Tensor) -> Tensor:
    """For every index of the first axis, (n,), the scale by which its largest value becomes 127, or a little less.

    They have 11 bits, so that products with integers are exact in fp32, and what was rounded has the same scales.
    """
    mantissa, exponent = (x.flatten(1).abs().amax(1) / 127).frexp()
    scale = torch.ldexp((mantissa * 2048).ceil() / 2048, exponent)
    return torch.where(scale == 0, 1.0, scale)


def _row_integers(x: Tensor, scale: Tensor) -> Tensor:
    return (x.flatten(1) / scale[:, None]).round().to(torch.int8).view_as(x)


def _from_rows(integers: Tensor, scale: Tensor) -> Tensor:
    return (integers.flatten(1) * scale[:, None]).view_as(integers)


def round_rows(x: Tensor) -> Tensor:
    """What 8 bits hold of a tensor with one scale for every index of its first axis; `flatten` finds them again."""
    scale = row_scales(x)
    return _from_rows(_row_integers(x, scale), scale)


def flatten(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict as the tensors and the metadata of a safetensors file.

    Next to quantised weights, everything lies in the fewest bytes that lose nothing: 4-bit weights two to a byte, other
    tensors in 8 bits or half precision if that holds them exactly.

    Args:
        state_dict: Of a model; quantised weights are torchao's `Int8Tensor`.
    """
    tensors = {name: x.detach().contiguous() for name, x in state_dict.items() if not is_quantized(x)}
    if len(tensors) == len(state_dict):
        return tensors, {'format': 'pt'}
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    parts, metadata = flatten_tensor_state_dict({name: x for name, x in state_dict.items() if is_quantized(x)})
    packed = []
    for name, x in parts.items():
        if name.endswith('_qdata') and x.shape[1] % 2 == 0 and x.min() >= -8 and x.max() <= 7:
            parts[name] = ((x[:, ::2] & 15) | (x[:, 1::2] << 4)).contiguous()
            packed.append(name)
    rows = []
    for name, x in list(tensors.items()):
        if x.dtype != torch.float32:
            continue
        if x.ndim > 1 and x[0].numel() >= LEAST_ROW:
            scale = row_scales(x)
            integers = _row_integers(x, scale)
            if torch.equal(_from_rows(integers, scale), x):
                tensors[name], tensors[name + _ROW_SCALE] = integers, scale
                rows.append(name)
                continue
        half = x.half()
        if torch.equal(half.float(), x):
            tensors[name] = half
    return {**tensors, **parts}, {**metadata, 'format': 'pt', _PACKED: json.dumps(packed), _ROWS: json.dumps(rows)}


def read_metadata(path: Any) -> dict[str, str]:
    """The metadata of a safetensors file if it holds quantised weights; else nothing."""
    with safe_open(path, 'pt') as file:
        metadata = file.metadata() or {}
    return metadata if _TENSORS in metadata else {}


def unflatten(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict that `flatten` took apart.

    Raises:
        ValueError: If the metadata does not describe 8-bit or 4-bit weights, or not these tensors.
        MissingExtraError: If torchao is missing or too old.
    """
    check_torchao()
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    names, packed = _names(metadata, _TENSORS), set(_names(metadata, _PACKED))
    kept, parts = dict(tensors), {}
    for name in _names(metadata, _ROWS):
        x, scale = kept.get(name), kept.pop(name + _ROW_SCALE, None)
        if x is None or scale is None or x.dtype != torch.int8 or x.ndim < 2 or scale.shape != x.shape[:1]:
            raise ValueError(f'{name} is not in 8 bits with a scale per row')
        kept[name] = _from_rows(x, scale)
    for name in names:
        prefix = '._'.join(name.rsplit('.', 1)) + '_'
        described = _described(name, metadata)
        for part in described['_tensor_data_names']:
            if f'{prefix}{part}' not in kept:
                raise ValueError(f'{name} has no {part}')
            x = kept.pop(f'{prefix}{part}')
            if f'{prefix}{part}' in packed:
                x = torch.stack([(x << 4) >> 4, x >> 4], -1).flatten(1)
            parts[f'{prefix}{part}'] = x
        _check_shapes(name, described, {part: parts[f'{prefix}{part}'] for part in described['_tensor_data_names']})
    try:
        found, left = unflatten_tensor_state_dict(parts, {key: metadata[key] for key in (*names, _TENSORS)})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'torchao cannot read the quantised weights: {error}') from None
    if left or found.keys() != set(names):
        raise ValueError('torchao does not find all of the quantised weights')
    for name, x in found.items():
        _check_input(name, x.act_quant_kwargs)
    return {**kept, **found}


def _names(metadata: Mapping[str, str], key: str) -> list[str]:
    names = _json(key, metadata.get(key, '[]'))
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f'{key} of the file is not a list of names')
    return names


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f'what the file says of {name} is not valid JSON') from None


def _described(name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of a quantised tensor, if it is an `Int8Tensor` of fp32 whose rows have one scale each."""
    described = _json(name, metadata.get(name, 'null'))
    try:
        data, parts = described['_data'], described['_tensor_data_names']
        fits = (
            described['_type'] == 'Int8Tensor'
            and data['dtype'] == {'_type': 'torch.dtype', '_data': 'float32'}
            and data.keys() <= {'act_quant_kwargs', 'reduce_range', 'block_size', 'dtype'}
            and _types(data) <= _TYPES
            and {'qdata', 'scale'} <= set(parts) <= _PARTS
            and len(set(parts)) == len(parts)
        )
    except (AttributeError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f'what the file says of {name} does not describe an Int8Tensor')
    return described


def _types(value: Any) -> set[str]:
    """What torchao would make of a description, and of what is in it."""
    if not isinstance(value, dict):
        return {'a list'} if isinstance(value, list) and any(isinstance(x, dict) for x in value) else set()
    return {str(value[key]) for key in value.keys() & {'_type'}}.union(*map(_types, value.values()))


def _check_shapes(name: str, described: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
    qdata, scale = parts['qdata'], parts['scale']
    if qdata.ndim != 2 or qdata.dtype != torch.int8 or scale.shape != (len(qdata), 1):
        raise ValueError(f'{name} is not an 8-bit matrix with a scale per row')
    if described['_data'].get('block_size') != [1, qdata.shape[1]]:
        raise ValueError(f'{name} has block_size {str(described["_data"].get("block_size"))[:80]}; allowed are rows')
    if 'act_pre_scale' in parts and parts['act_pre_scale'].shape != qdata.shape[1:]:
        raise ValueError(f'{name} has scales of {len(parts["act_pre_scale"])} inputs; it takes {qdata.shape[1]}')
    if any(parts[part].numel() != 1 for part in ('act_quant_scale', 'act_quant_zero_point') if part in parts):
        raise ValueError(f'{name} has more than one scale of its input')


def _check_input(name: str, kwargs: Any) -> None:
    """Raise unless torchao made of a description what says how inputs are quantised, or None."""
    from torchao.quantization import MappingType, PerRow, PerTensor

    fits = kwargs is None or (
        isinstance(getattr(kwargs, 'granularity', None), PerRow | PerTensor)
        and isinstance(getattr(kwargs, 'mapping_type', None), MappingType)
        and isinstance(kwargs.reduce_range, bool)
    )
    if not fits:
        raise ValueError(f'what the file says of the input of {name} is not how torchao quantises one')


def install(model: nn.Module, state_dict: Mapping[str, Tensor], skipped: Iterable[str] = ()) -> None:
    """Give a new model the quantised weights of a state dict, and the biases that come with them; others stay.

    Projections that a scan stacks become linear layers if the state dict has them so.

    Args:
        model: Whose linear layers they are for.
        state_dict: Under the model's names.
        skipped: Prefixes of names that are left alone.

    Raises:
        ValueError: If a quantised weight is not that of a linear layer of the same shape.
    """
    for name, scan in list(model.named_modules()):
        if isinstance(scan, SelectiveSSM) and any(key.startswith(f'{name}.directions.') for key in state_dict):
            scan.split_projections()
    modules = dict(model.named_modules())
    for name, x in state_dict.items():
        if not is_quantized(x) or name.startswith(tuple(skipped)):
            continue
        place, _, leaf = name.rpartition('.')
        layer = modules.get(place)
        if leaf != 'weight' or not isinstance(layer, nn.Linear) or layer.weight.shape != x.shape:
            raise ValueError(f'quantised {name} {tuple(x.shape)} is not the weight of a linear layer of the model')
        layer.weight = nn.Parameter(x, requires_grad=False)
        if layer.bias is None and f'{place}.bias' in state_dict:  # mean reduction adds it
            layer.bias = nn.Parameter(torch.zeros(len(x), device=x.device), requires_grad=False)
