"""What the OpenMMLab tools share: their arguments, and configs that are ready to run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from torch import nn

from visionssm.catalog.configs import find_config
from visionssm.weights.checkpoint import load_checkpoint


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what training and testing both take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='a file, or the name of one of our configs')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default work_dirs/CONFIG)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='KEY=VALUE ... to change in the config, such as train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='default none')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def read_config(args: argparse.Namespace) -> Config:
    """The config that the parsed arguments name.

    Raises:
        ValueError: If there is no such config.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = find_config(args.config)
    config = Config.fromfile(path)
    config.merge_from_dict(args.cfg_options)
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or str(Path('work_dirs') / path.stem)
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    return config


def load_whole(model: nn.Module, checkpoint: Path) -> None:
    """Load a detector or segmenter strictly.

    Args:
        model: The model.
        checkpoint: File of weights.

    Raises:
        ValueError: If the weights do not fit.
    """
    try:
        model.load_state_dict(load_checkpoint(checkpoint))
    except RuntimeError as error:
        raise ValueError(f'{checkpoint} does not fit the config: {error}') from None
