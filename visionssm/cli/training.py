"""Train: the demo, and any model by a recipe."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

from .output import filename, path, positive, say, table


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser('demo', help='train a small model on real digits, on this CPU, in a minute')
    command.add_argument('--model', default='vmamba_nano', metavar='NAME', help='default: vmamba_nano')
    command.add_argument('--scan', metavar='SCAN', help='name or JSON, such as \'{"name": "local", "window": 4}\'')
    command.add_argument('--compare-scans', metavar='A,B,C', help='train once per order and print a table')
    command.add_argument('--epochs', type=positive, metavar='N', help='default: 16; 5 with --compare-scans')
    command.add_argument('--output', type=path, default=Path('runs/demo'), metavar='DIR', help='default: runs/demo')
    command.add_argument('--seed', type=int, default=0, help='default: 0')
    # one: on maps this small more threads gain little, on a busy machine they wait for each other, and the result would
    # depend on the number of cores
    command.add_argument('--threads', type=positive, default=1, metavar='N', help='default: 1')
    command.add_argument('--limit', type=positive, help=argparse.SUPPRESS)  # for tests: only so many images
    command.set_defaults(run=_demo)

    command = commands.add_parser('train', help='train any model by a recipe, here or under torchrun')
    command.add_argument('--config', type=filename, metavar='FILE', help='recipe, or the name of one in configs/train')
    command.add_argument('--model', metavar='NAME', help="instead of the recipe's")
    command.add_argument('--data', metavar='DATA', help="folder with train/ and val/, 'digits', hfds/NAME, wds/NAME")
    command.add_argument('--epochs', type=positive, metavar='N', help="instead of the recipe's")
    command.add_argument(
        '--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='other keys of the recipe'
    )
    command.add_argument('--list-keys', action='store_true', help='show all keys of a recipe, and stop')
    command.add_argument('--output', type=path, default=Path('runs/train'), metavar='DIR', help='default: runs/train')
    command.add_argument(
        '--resume', default='no', metavar='auto|no|FILE', help='auto: go on from the newest checkpoint; default: no'
    )
    command.add_argument('--device', default='auto', help='default: auto, a GPU if there is one')
    command.set_defaults(run=_train)

    command = commands.add_parser('compare', help='several models or scan orders on your data: accuracy, speed, memory')
    command.add_argument(
        'models', nargs='+', metavar='MODEL', help="names of ours or timm's, local-dir:FOLDER, MODEL@KEY=VALUE"
    )
    command.add_argument('--data', required=True, metavar='DATA', help="folder of images, 'digits' or hfds/NAME")
    command.add_argument(
        '--output', type=path, default=Path('runs/compare'), metavar='DIR', help='default: runs/compare'
    )
    command.add_argument('--scan', nargs='+', default=[], metavar='SCAN', help='orders that each model is tried with')
    command.add_argument('--probe', metavar='KIND', help='linear or knn: on frozen features, instead of training')
    command.add_argument('--epochs', type=positive, metavar='N', help="of training; default: the recipe's")
    command.add_argument('--seeds', type=positive, default=3, metavar='N', help='runs of each; default: 3')
    command.add_argument(
        '--initial', metavar='WEIGHTS', help='pretrained, none, FILE or DIR; default: pretrained for probes, else none'
    )
    command.add_argument('--img-size', type=positive, metavar='N', help="of all; default: the models' own")
    command.add_argument('--batch-size', type=positive, metavar='N', help="of training; default: the recipe's")
    command.add_argument(
        '--config', type=filename, metavar='FILE', help='recipe that all share, or the name of one in configs/train'
    )
    command.add_argument(
        '--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='other keys of the recipe'
    )
    command.add_argument('--speed-batch', type=positive, default=8, metavar='N', help='of timed images; default: 8')
    command.add_argument('--rounds', type=positive, default=9, metavar='N', help='timed runs of each; default: 9')
    command.add_argument('--threads', type=positive, metavar='N', help="default: torch's")
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.add_argument('--markdown', action='store_true', help='print a Markdown table')
    command.set_defaults(run=_compare)


def _demo(args: argparse.Namespace) -> int:
    import torch

    from visionssm import demo

    # a polite end removes the half-written folder; the default one does not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(args.threads)
    options = demo.DemoOptions(args.model, args.scan, seed=args.seed, limit=args.limit)
    progress = sys.stderr.isatty()
    if args.compare_scans is None:
        if args.epochs is not None:
            options = replace(options, epochs=args.epochs)
        demo.run_demo(options, args.output, say, progress)
        return 0
    if args.scan is not None:
        raise ValueError('--scan and --compare-scans exclude each other')
    options = replace(options, epochs=args.epochs or 5)
    results = demo.compare_scans(options, _split_scans(args.compare_scans), say, progress)
    rows = [
        [
            scan,
            f'{trained.accuracy:.2%}',
            f'{trained.history[-1].seconds:.0f}',
            f'{sum(p.numel() for p in trained.model.parameters()) / 1e6:.2f}',
        ]
        for scan, trained in sorted(results, key=lambda result: -result[1].accuracy)
    ]
    table(['scan', 'held-out accuracy', 'seconds', 'params (M)'], rows)
    print(f'{options.model}, {options.epochs} epochs, seed {options.seed}: a first look, one run each')
    return 0


def _train(args: argparse.Namespace) -> int:
    from visionssm.catalog.configs import find_config
    from visionssm.train import describe_fields, load_recipe

    if args.list_keys:
        table(['key', 'default', 'meaning'], describe_fields())
        return 0
    config = find_config(args.config) if args.config else None
    recipe = load_recipe(config, args.set, model=args.model, data=args.data, epochs=args.epochs)

    from visionssm.train.loop import NonFiniteLossError
    from visionssm.train.run import train

    try:
        train(recipe, args.output, say, args.resume, args.device, sys.stderr.isatty())
    except NonFiniteLossError as error:
        if args.traceback:
            raise
        print(f'visionssm: {error}', file=sys.stderr)
        return 1
    return 0


def _compare(args: argparse.Namespace) -> int:
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # or torch's profiler, which counts memory, prints its starts
    import torch

    from visionssm.compare import compare
    from visionssm.compare.report import columns

    if args.threads:
        torch.set_num_threads(args.threads)
    rows, notes = compare(
        args.models,
        args.data,
        args.output,
        scans=args.scan,
        probe=args.probe,
        epochs=args.epochs,
        seeds=args.seeds,
        initial=args.initial,
        img_size=args.img_size,
        batch_size=args.batch_size,
        config=args.config,
        overrides=args.set,
        speed_batch=args.speed_batch,
        rounds=args.rounds,
        device=args.device,
        say=say,
    )
    table(*columns(rows), args.markdown)
    print('', *notes, f'wrote {args.output / "compare.png"}, and the table beside it as .md, .csv and .json', sep='\n')
    return 0


def _split_scans(text: str) -> list[str]:
    """Split at the commas outside braces."""
    scans = [part.strip() for part in re.split(r',(?![^{]*\})', text)]
    if not all(scans):
        raise ValueError(f'--compare-scans {text!r} has an empty name; give names or JSON with commas between')
    return scans
