"""The rule that fills a fixture's weights and input, so that both sides can make the same ones, and the readers."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'little'))


def fill_tensor(name: str, shape, overrides: list[dict] | None = None) -> np.ndarray:
    """The float32 values of the entry `name`; `overrides` is a fixture's `fill_overrides`, the first match wins."""
    shape = tuple(int(size) for size in shape)
    u = _random(name).uniform(-1.0, 1.0, size=shape)
    for rule in overrides or []:
        if re.search(rule['regex'], name):
            if rule.get('rope'):  # A2Mamba's constant angles, each twice
                return np.repeat(1.0 / 10000.0 ** np.linspace(0.0, 1.0, shape[0] // 2), 2).astype(np.float32)
            if rule.get('haar'):  # MobileMamba's constant filters, for every channel
                signs = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]])
                return np.tile(signs[:, None] / 2, (shape[0] // 4, 1, 1, 1)).astype(np.float32)
            return (rule['uniform'] * u + rule.get('add', 0.0)).astype(np.float32)
    return _fill_by_name(name, shape, u).astype(np.float32)


def _fill_by_name(name: str, shape: tuple[int, ...], u: np.ndarray) -> np.ndarray:
    leaf = name.split('.')[-1].lower()
    if leaf.startswith('a_log') or leaf == 'a_b_log':
        return np.log(np.arange(1, shape[-1] + 1, dtype=np.float64)) + 0.1 * u
    if leaf in ('d', 'ds', 'd_b'):
        return 1.0 + 0.1 * u
    if leaf == 'dt_projs_bias' or name.endswith(('dt_proj.bias', 'dt_proj_b.bias')):
        return -3.0 + 1.5 * u
    if leaf == 'running_mean':
        return 0.1 * u
    if leaf == 'running_var':
        return 1.0 + 0.2 * u
    if leaf in ('scale', 'skip_scale') or leaf.startswith(('gamma', 'layer_scale', 'ls')):
        return 0.5 + 0.1 * u
    if len(shape) <= 1:
        return 1.0 + 0.1 * u if leaf == 'weight' else 0.1 * u
    if leaf in ('pos_embed', 'cls_token', 'absolute_pos_embed'):
        return 0.2 * u
    fan_in = shape[-1] if leaf in ('x_proj_weight', 'dt_projs_weight') else int(np.prod(shape[1:]))
    return u * np.sqrt(3.0 / max(fan_in, 1))


def load(name: str, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(metadata, arrays) of the fixture `name`."""
    meta = json.loads((folder / f'{name}.json').read_text())
    with np.load(folder / f'{name}.npz') as arrays:
        return meta, {key: arrays[key] for key in arrays.files}


def upstream_state_dict(meta: dict) -> dict[str, torch.Tensor]:
    """The checkpoint that the original ran with, under upstream's names."""
    return {
        name: torch.from_numpy(fill_tensor(name, shape, meta.get('fill_overrides')))
        if 'float' in dtype
        else torch.zeros(shape, dtype=getattr(torch, dtype))
        for name, shape, dtype in meta['state_dict']
    }


def make_input(shape) -> np.ndarray:
    """The image batch (B, C, H, W): smooth waves plus noise."""
    _, _, height, width = shape
    rng = _random(f'input{tuple(shape)}')
    yy, xx = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing='ij')
    image = np.zeros(shape)
    for plane in image.reshape(-1, height, width):
        for _ in range(4):
            fy, fx, phase, amp = rng.uniform(0.5, 6), rng.uniform(0.5, 6), rng.uniform(0, 6.28), rng.uniform(0.3, 1)
            plane += amp * np.sin(2 * np.pi * (fy * yy + fx * xx) + phase)
    image += 0.3 * rng.standard_normal(shape)
    return image.astype(np.float32)


def summarise(tensor: torch.Tensor, count: int = 256) -> np.ndarray:
    """`count` evenly spaced values of the flattened tensor, as stored in `feat_i_j`."""
    flat = tensor.detach().float().contiguous().flatten()
    return flat[torch.linspace(0, flat.numel() - 1, min(count, flat.numel())).round().long()].numpy()
