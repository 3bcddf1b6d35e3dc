"""Checkpoints that are either whole or not there, and the random states in them."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionssm.files import leftovers, link_whole, write_whole
from visionssm.weights.checkpoint import read_file

_NAME = re.compile(r'step-(\d+)\.pt')


class Checkpoints:
    """The checkpoints of a run: `step-NNNNNNNN.pt`, of which the last few are kept, and `best.pt`.

    Args:
        folder: Where they lie; made when the first is written.
        keep: How many are kept beside the best one.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def files(self) -> list[Path]:
        """Those that are there, oldest first."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((file for file in files if _NAME.fullmatch(file.name)), key=lambda file: file.name)

    def save(self, state: dict[str, Any], step: int, best: bool = False) -> Path:
        """Write a checkpoint; at every moment its name stands for a whole file or for none.

        Raises:
            OSError: If it can't be written; earlier ones are still there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(self.folder):  # left by a process that was killed
            leftover.unlink()
        file = self.folder / f'step-{step:08d}.pt'
        try:
            write_whole(file, lambda stream: torch.save(state, stream))
            if best:
                link_whole(file, file.with_name('best.pt'))
        except OSError as error:
            kept = self.files()
            good = f'the last good checkpoint is {kept[-1]}' if kept else 'there is no earlier checkpoint'
            raise OSError(error.errno, f'cannot write {file}: {error.strerror or error}; {good}') from error
        for old in self.files()[: -self.keep]:
            old.unlink()
        return file

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and its content; None: there is none.

        Raises:
            ValueError: If there are some, and none can be read.
        """
        files = self.files()
        for file in reversed(files):
            try:
                return file, read_checkpoint(file)
            except ValueError:
                if file is files[0]:
                    raise
        return None


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours; nothing in it is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or not a checkpoint of a run.
    """
    if not file.is_file():
        raise FileNotFoundError(f'no checkpoint at {file}')
    state = read_file(file)
    if not isinstance(state, dict) or 'progress' not in state:
        raise ValueError(f'{file} is not a checkpoint of a run; to start from weights, set initial')
    return state


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all generators of this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    states = {
        'python': random.getstate(),
        'numpy': (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        'torch': torch.get_rng_state(),
    }
    if device.type == 'cuda':
        states['cuda'] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states['python'])
    name, keys, *rest = states['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'])
    if device.type == 'cuda' and 'cuda' in states:
        torch.cuda.set_rng_state(states['cuda'], device)


def seed_cpu(*seeds: int) -> None:
    """Seed this process's CPU generators from several numbers."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
