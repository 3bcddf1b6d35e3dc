"""The command line, `visionssm`: parse, call, print. What it prints is made elsewhere, and imported when asked for.

Exit codes: 0 done, 1 a check failed, 2 bad input (one line on stderr, no traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .extras import MissingExtraError
from .ops import BackendUnavailableError
from .version import __version__

# what bad input raises, here and in the packages below; anything else is a bug and keeps its traceback
USER_ERRORS = (ValueError, OSError, BackendUnavailableError, MissingExtraError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print('\nvisionssm: interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has enough, as `head` does
        sys.stderr.close()
        return 0
    except USER_ERRORS as error:
        if args.traceback:
            raise
        print(f'visionssm: {_one_line(error)}', file=sys.stderr)
        return 2


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    text = re.sub(r':\s*\n\s*', ': ', text.strip())
    return re.sub(r'\s*\n\s*', '; ', text) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='visionssm', description='Vision state-space backbones in timm: look, check, try.'
    )
    parser.add_argument('--version', action='version', version=f'visionssm {__version__}')
    parser.add_argument('--traceback', action='store_true', help='show the traceback of errors in the input, too')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    command = commands.add_parser('list', help='models: size, input, reported accuracy, licence')
    command.add_argument('pattern', nargs='?', default='', metavar='PATTERN', help='wildcards, such as "vmamba_*"')
    command.add_argument(
        '--markdown',
        action='store_true',
        help='print a Markdown table, with multiply-adds beside what the authors report',
    )
    command.set_defaults(run=_list)

    command = commands.add_parser('info', help='all about one model')
    command.add_argument('model', metavar='MODEL')
    command.set_defaults(run=_info)

    command = commands.add_parser('weights', help='published weights: where, licence, size, whether they are here')
    command.add_argument('pattern', nargs='?', default='', metavar='PATTERN', help='wildcards, or a part of the name')
    action = command.add_mutually_exclusive_group()
    action.add_argument('--download', action='store_true', help='fetch and verify what matches')
    action.add_argument('--verify', action='store_true', help='compare what is cached with its SHA-256')
    action.add_argument('--prune', action='store_true', help='remove what matches from the cache')
    action.add_argument('--json', action='store_true', help='print JSON')
    command.set_defaults(run=_weights)

    command = commands.add_parser('configs', help='where the recipes and the configs for mmdet and mmseg are')
    command.add_argument('pattern', nargs='?', default='', metavar='PATTERN', help='wildcards, or a part of the name')
    command.set_defaults(run=_configs)

    command = commands.add_parser('env', help='versions, devices, and which backend of which op serves which')
    command.set_defaults(run=_env)

    command = commands.add_parser('selfcheck', help='check every scan backend on this machine against the definition')
    command.add_argument('--backend', nargs='+', default=[], metavar='NAME', help='default: all that serve the device')
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.set_defaults(run=_selfcheck)

    command = commands.add_parser('scans', help='scan orders, and a picture of them')
    command.add_argument('--plot', type=Path, metavar='FILE', help='draw every path on a small grid (needs matplotlib)')
    command.set_defaults(run=_scans)

    command = commands.add_parser('demo', help='train a small model on real digits, on this CPU, in a minute')
    command.add_argument('--model', default='vmamba_nano', metavar='NAME', help='default: vmamba_nano')
    command.add_argument('--scan', metavar='SCAN', help='name or JSON, such as \'{"name": "local", "window": 4}\'')
    command.add_argument('--compare-scans', metavar='A,B,C', help='train once per order and print a table')
    command.add_argument('--epochs', type=_positive, metavar='N', help='default: 16; 5 with --compare-scans')
    command.add_argument('--output', type=Path, default=Path('runs/demo'), metavar='DIR', help='default: runs/demo')
    command.add_argument('--seed', type=int, default=0, help='default: 0')
    # one: on maps this small more threads gain little, on a busy machine they wait for each other, and the result would
    # depend on the number of cores
    command.add_argument('--threads', type=_positive, default=1, metavar='N', help='default: 1')
    command.add_argument('--limit', type=_positive, help=argparse.SUPPRESS)  # for tests: only so many images
    command.set_defaults(run=_demo)

    command = commands.add_parser('classify', help='what is on these images')
    command.add_argument('images', nargs='+', metavar='IMAGE')
    command.add_argument(
        '--model', required=True, metavar='NAME', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME'
    )
    command.add_argument('--checkpoint', metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--topk', type=_positive, default=5, metavar='K', help='classes per image; default: 5')
    command.add_argument('--img-size', type=_positive, metavar='N', help="default: the model's own")
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.add_argument('--json', action='store_true', help='print JSON')
    command.set_defaults(run=_classify)

    command = commands.add_parser('convert', help="any checkpoint to a folder in timm's layout, with a model card")
    command.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help="file of weights, the authors' or yours")
    command.add_argument('--model', required=True, metavar='NAME', help='registered name')
    command.add_argument('--output', required=True, type=Path, metavar='DIR', help='folder to write')
    command.add_argument('--source', default='', metavar='TEXT', help='where the file is from, for the card')
    command.add_argument(
        '--license', default='', metavar='ID', help='of the weights, such as mit; default: as released'
    )
    command.add_argument(
        '--model-kwargs', nargs='+', default=[], type=_assignment, metavar='KEY=VALUE', help='such as img_size=384'
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser('push', help="publish a folder in timm's layout on the Hub; shows what it would do")
    command.add_argument('folder', type=Path, metavar='DIR', help='as convert, demo or train wrote it')
    command.add_argument('repo_id', metavar='OWNER/NAME')
    command.add_argument('--yes', action='store_true', help='do it')
    command.add_argument('--private', action='store_true', help='make the repository, if it is new, private')
    command.add_argument(
        '--i-have-the-right', action='store_true', help='to publish weights whose licence is unknown or contradictory'
    )
    command.set_defaults(run=_push)

    command = commands.add_parser('train', help='train any model by a recipe, here or under torchrun')
    command.add_argument('--config', metavar='FILE', help='recipe, or the name of one in configs/train')
    command.add_argument('--model', metavar='NAME', help="instead of the recipe's")
    command.add_argument('--data', metavar='DATA', help="folder with train/ and val/, 'digits', hfds/NAME, wds/NAME")
    command.add_argument('--epochs', type=_positive, metavar='N', help="instead of the recipe's")
    command.add_argument(
        '--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='other keys of the recipe'
    )
    command.add_argument('--list-keys', action='store_true', help='show all keys of a recipe, and stop')
    command.add_argument('--output', type=Path, default=Path('runs/train'), metavar='DIR', help='default: runs/train')
    command.add_argument(
        '--resume', default='no', metavar='auto|no|FILE', help='auto: go on from the newest checkpoint; default: no'
    )
    command.add_argument('--device', default='auto', help='default: auto, a GPU if there is one')
    command.set_defaults(run=_train)

    command = commands.add_parser('features', help='what a model sees in images, as numbers in a file')
    command.add_argument('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
    command.add_argument(
        '--model', required=True, metavar='NAME', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME'
    )
    command.add_argument('--checkpoint', metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--output', type=Path, required=True, metavar='FILE', help='.safetensors or .npz')
    command.add_argument('--batch-size', type=_positive, default=32, metavar='N', help='default: 32')
    command.add_argument('--workers', type=int, default=0, metavar='N', help='loader processes; default: 0')
    command.add_argument('--img-size', type=_positive, metavar='N', help="default: the model's own")
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.set_defaults(run=_features)
    return parser


def _train(args: argparse.Namespace) -> int:
    from .catalog.configs import find_config
    from .train import describe_fields, load_recipe

    if args.list_keys:
        _table(['key', 'default', 'meaning'], describe_fields())
        return 0
    config = find_config(args.config) if args.config else None
    recipe = load_recipe(config, args.set, model=args.model, data=args.data, epochs=args.epochs)

    from .train.loop import NonFiniteLossError
    from .train.run import train

    try:
        train(recipe, args.output, _say, args.resume, args.device, sys.stderr.isatty())
    except NonFiniteLossError as error:
        if args.traceback:
            raise
        print(f'visionssm: {error}', file=sys.stderr)
        return 1
    return 0


def _features(args: argparse.Namespace) -> int:
    from .apps import features
    from .apps.classify import load_classifier
    from .catalog.machine import check_device

    device = check_device(args.device)
    features.check_suffix(args.output)
    _check_parent(args.output)
    files = features.image_files(args.images)
    model = load_classifier(args.model, args.checkpoint, args.img_size)
    batches = features.extract(model, files, args.img_size, device, args.batch_size, args.workers)
    with features.progress(batches, len(files), sys.stderr.isatty()) as shown:
        features.write_features(args.output, shown, [str(file) for file in files], {'model': args.model})
    print(f'wrote {args.output}: features of {len(files)} image{"s" if len(files) > 1 else ""}')
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed; give an integer from 1')
    return int(text)


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed; give KEY=VALUE')
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:  # a name, such as that of a scan order
        return key, value


def _list(args: argparse.Namespace) -> int:
    from .catalog.models import list_rows

    rows = list_rows(args.pattern, cost=args.markdown)
    _table(list(rows[0]), [list(row.values()) for row in rows], args.markdown)
    print('\ntop-1: on ImageNet-1k in percent, as the authors report it. licence: of the weights, as they state it.')
    if args.markdown:
        print(
            'GMACs: counted for one image of this size (matrix products, convolutions, attention; the scan by the '
            "papers' formula). reported: the authors' figures; * where the count differs by over 1 %, see the remark."
        )
    return 0


def _info(args: argparse.Namespace) -> int:
    from .catalog.models import describe

    _pairs(describe(args.model))
    return 0


def _weights(args: argparse.Namespace) -> int:
    from .catalog import weights

    found = weights.find_weights(args.pattern)
    if (args.download or args.prune) and not args.pattern:
        raise ValueError(f"give a PATTERN; '*' is all {len(found)} files")
    if args.download or args.verify:
        failed = None
        for entry, result in (weights.download if args.download else weights.verify_cached)(found):
            failed = bool(failed) or isinstance(result, str)
            _say(f'{entry.name}: {result if isinstance(result, str) else f"verified, {result}"}')
        if failed is None:
            print('nothing of it is cached')
        return 1 if failed else 0
    if args.prune:
        total = 0
        for path, size in weights.prune(found):
            print(f'removed {path}')
            total += size
        print(f'{total / 1e6:.1f} MB are free again')
        return 0
    entries = [entry.describe() for entry in found]
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    lines = [
        [
            entry['name'],
            entry['task'],
            entry['license'],
            '' if entry['size'] is None else f'{entry["size"] / 1e6:.1f}',
            entry['state'],
            entry['where'],
        ]
        for entry in entries
    ]
    _table(['weights', 'task', 'licence', 'MB', 'here', 'where'], lines)
    print('\nhere: verified, used before with the SHA-256 that it should have; cached, never used; by hand, see where.')
    return 0


def _configs(args: argparse.Namespace) -> int:
    from .catalog.configs import list_configs

    for path in list_configs(args.pattern):
        print(path)
    return 0


def _env(args: argparse.Namespace) -> int:
    from .catalog import machine as environment

    for heading, pairs in (
        ('versions', environment.versions()),
        ('devices', environment.devices()),
        ('tools', environment.tools()),
    ):
        print(heading)
        _pairs(pairs, indent='  ')
        print()
    print('backends')
    _table(['op', 'device', 'backend', 'here'], environment.backends())
    return 0


def _selfcheck(args: argparse.Namespace) -> int:
    from .apps.selfcheck import check, refusals
    from .catalog.machine import check_device
    from .testing import tolerance

    device = check_device(args.device)
    refused = refusals(device, args.backend)
    rows = list(check(device, args.backend))
    lines = []
    for row in rows:
        measures = ((row.output, tolerance(row.dtype)), (row.grad, tolerance(row.dtype, grad=True)))
        errors = [f'{error:.1e} of {limit:.0e}' if where else '' for (error, where), limit in measures]
        worst = row.failure or row.grad[1]
        verdict = 'ok' if row.passed else 'FAILED'
        lines.append([row.backend, str(row.dtype).removeprefix('torch.'), str(row.cases), *errors, verdict, worst])
    _table(['backend', 'dtype', 'cases', 'output error', 'gradient error', '', 'worst gradient, or failure'], lines)
    if not args.backend:
        for name, reason in refused.items():
            print(f'{name} was not checked: {_one_line(ValueError(reason))}')
    passed = all(row.passed for row in rows)
    print(f'{"all" if passed else "NOT all"} within tolerance of the definition in fp64, on {device}')
    return 0 if passed else 1


def _scans(args: argparse.Namespace) -> int:
    from .scans import get_scan, list_scans, plot_scans

    if args.plot is not None:
        _check_parent(args.plot)
        plot_scans(args.plot)
        print(f'wrote {args.plot}')
        return 0
    rows = []
    for name in list_scans():
        strategy = get_scan(name).strategy
        counts = ', '.join(map(str, strategy.directions)) + (', any' if strategy.any_directions else '')
        arguments = ', '.join(f'{key}={value}' for key, value in strategy.args.items())
        rows.append([name, counts, arguments, strategy.meaning])
    _table(['scan', 'directions', 'arguments', 'meaning'], rows)
    return 0


def _demo(args: argparse.Namespace) -> int:
    import torch

    from . import demo

    # a polite end removes the half-written folder; the default one does not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(args.threads)
    options = demo.DemoOptions(args.model, args.scan, seed=args.seed, limit=args.limit)
    progress = sys.stderr.isatty()
    if args.compare_scans is None:
        if args.epochs is not None:
            options = replace(options, epochs=args.epochs)
        demo.run_demo(options, args.output, _say, progress)
        return 0
    if args.scan is not None:
        raise ValueError('--scan and --compare-scans exclude each other')
    options = replace(options, epochs=args.epochs or 5)
    results = demo.compare_scans(options, _split_scans(args.compare_scans), _say, progress)
    rows = [
        [
            scan,
            f'{trained.accuracy:.2%}',
            f'{trained.history[-1].seconds:.0f}',
            f'{sum(p.numel() for p in trained.model.parameters()) / 1e6:.2f}',
        ]
        for scan, trained in sorted(results, key=lambda result: -result[1].accuracy)
    ]
    _table(['scan', 'held-out accuracy', 'seconds', 'params (M)'], rows)
    print(f'{options.model}, {options.epochs} epochs, seed {options.seed}: a first look, one run each')
    return 0


def _split_scans(text: str) -> list[str]:
    """Split at the commas outside braces."""
    scans = [part.strip() for part in re.split(r',(?![^{]*\})', text)]
    if not all(scans):
        raise ValueError(f'--compare-scans {text!r} has an empty name; give names or JSON with commas between')
    return scans


def _classify(args: argparse.Namespace) -> int:
    from .apps.classify import classify, load_classifier
    from .catalog.machine import check_device

    device = check_device(args.device)
    model = load_classifier(args.model, args.checkpoint, args.img_size)
    # all of them before the first line: an error leaves no half of an answer
    results = list(classify(model, args.images, args.topk, args.img_size, device))
    if args.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return 0
    for result in results:
        print(result['file'])
        for prediction in result['predictions']:
            print(f'  {prediction["probability"]:7.2%}  {prediction["label"]}')
    return 0


def _convert(args: argparse.Namespace) -> int:
    from .hub.convert import convert

    done = convert(args.checkpoint, args.model, args.output, dict(args.model_kwargs), args.source, args.license)
    what = f'{done.num_classes} classes' if done.num_classes else 'a backbone, no classifier'
    _pairs(
        [
            ('model', f'{args.model}, {what}'),
            ('release', done.release or 'none that is known'),
            ('licence', done.license),
            *(
                (heading, ', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else ''))
                for heading, names in (
                    ('left out', done.left_out),
                    ('in a file of its own', done.extra),
                    ('as in a new model', done.fresh),
                )
                if names
            ),
        ]
    )
    print(f"wrote {done.folder}; it loads by timm.create_model('local-dir:{done.folder}', pretrained=True)")
    return 0


def _push(args: argparse.Namespace) -> int:
    from .hub.push import plan, upload

    made = plan(args.folder, args.repo_id)
    _table(['file', 'bytes'], [[name, f'{made.size(name):,}'] for name in made.files])
    _pairs([('to', made.repo_id), ('card', made.title), ('licence', made.license)])
    if made.left_out:
        print(f'left out, as they may be pickles: {", ".join(made.left_out)}')
    refusal = f'{"; ".join(made.warnings)}. If you have it, add --i-have-the-right'
    if made.warnings and args.yes and not args.i_have_the_right:
        raise ValueError(refusal)
    if not args.yes:
        if made.warnings and not args.i_have_the_right:
            print(f'would be refused: {refusal}')
        print('nothing was uploaded: this was a look at what would be; add --yes to do it')
        return 0
    print(f'uploaded: {upload(made, args.private)}')
    return 0


def _check_parent(file: Path) -> None:
    if not file.parent.is_dir():
        raise ValueError(f'{file} cannot be written: there is no folder {file.parent}')


def _say(line: str) -> None:
    print(line, flush=True)


def _pairs(pairs: list[tuple[str, str]], indent: str = '') -> None:
    width = max(len(name) for name, _ in pairs)
    previous = None
    for name, value in pairs:
        print(f'{indent}{"" if name == previous else name:<{width}}  {value}')
        previous = name


def _table(headings: list[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> None:
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    edge, gap = ('| ', ' | ') if markdown else ('', '  ')
    for number, line in enumerate(lines):
        text = gap.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(f'{edge}{text}{edge[::-1]}'.rstrip())
        if number == 0:
            print('|'.join(['', *('-' * (width + 2) for width in widths), '']) if markdown else '-' * len(text))
