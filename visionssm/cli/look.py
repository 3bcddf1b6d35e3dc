"""What there is: models, weights, configs, scan orders."""

from __future__ import annotations

import argparse
import json

from visionssm.files import check_writable

from .output import filename, pairs, path, positive, say, table
from .use import asked_model


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser('list', help='models: size, input, reported accuracy, licence')
    command.add_argument('pattern', nargs='?', default='', metavar='PATTERN', help='wildcards, such as "vmamba_*"')
    command.add_argument(
        '--markdown',
        action='store_true',
        help='print a Markdown table, with multiply-adds beside what the authors report',
    )
    command.set_defaults(run=_list)

    command = commands.add_parser('info', help='everything about one model')
    command.add_argument('model', metavar='MODEL')
    command.set_defaults(run=_info)

    command = commands.add_parser('weights', help='published weights: source, licence, size, whether cached')
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

    command = commands.add_parser('scans', help='scan orders, and a picture of them')
    command.add_argument('--plot', type=path, metavar='FILE', help='draw every path on a small grid (needs matplotlib)')
    command.set_defaults(run=_scans)

    command = commands.add_parser('viz', help='pictures of what a model does with images, and a page of all of them')
    command.add_argument('model', metavar='MODEL', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME')
    command.add_argument('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
    command.add_argument('--output', type=path, required=True, metavar='DIR', help='folder for the pictures')
    command.add_argument('--checkpoint', type=filename, metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--random', action='store_true', help='a new model without trained weights')
    command.add_argument(
        '--before', type=filename, metavar='FILE', help='other weights, whose receptive field is drawn beside'
    )
    command.add_argument('--layers', type=positive, default=6, metavar='N', help='layers to look into; default: 6')
    command.add_argument('--class', dest='index', type=int, metavar='N', help='evidence for it; default: most probable')
    command.add_argument('--img-size', type=positive, metavar='N', help="default: the model's own")
    command.set_defaults(run=_viz)


def _list(args: argparse.Namespace) -> int:
    from visionssm.catalog.models import list_rows

    rows = list_rows(args.pattern, cost=args.markdown)
    table(list(rows[0]), [list(row.values()) for row in rows], args.markdown)
    print('\ntop-1: on ImageNet-1k in percent, as the authors report it. licence: of the weights, as they state it.')
    if args.markdown:
        print(
            'GMACs: counted for one image of this size (matrix products, convolutions, attention; the scan by the '
            "papers' formula). reported: the authors' figures; * where the count differs by over 1 %, see the remark."
        )
    return 0


def _info(args: argparse.Namespace) -> int:
    from visionssm.catalog.models import describe

    pairs(describe(args.model))
    return 0


def _weights(args: argparse.Namespace) -> int:
    from visionssm.catalog import weights
    from visionssm.weights.records import license_text

    found = weights.find_weights(args.pattern)
    if (args.download or args.prune) and not args.pattern:
        raise ValueError(f"give a PATTERN; '*' is all {len(found)} files")
    if args.download or args.verify:
        failed = None
        for entry, result in (weights.download if args.download else weights.verify_cached)(found):
            failed = bool(failed) or isinstance(result, str)
            say(f'{entry.name}: {result if isinstance(result, str) else f"verified, {result}"}')
        if failed is None:
            print('none of it is cached')
        return 1 if failed else 0
    if args.prune:
        total = 0
        for path, size in weights.prune(found):
            print(f'removed {path}')
            total += size
        print(f'{total / 1e6:.1f} MB freed')
        return 0
    entries = [entry.describe() for entry in found]
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    lines = [
        [
            entry['name'],
            entry['task'],
            license_text(entry['license']),
            '' if entry['size'] is None else f'{entry["size"] / 1e6:.1f}',
            entry['state'],
            entry['where'],
        ]
        for entry in entries
    ]
    table(['weights', 'task', 'licence', 'MB', 'here', 'where'], lines)
    print('\nhere: verified, used before with the right SHA-256; cached, never used; by hand, see where.')
    return 0


def _configs(args: argparse.Namespace) -> int:
    from visionssm.catalog.configs import list_configs

    for config in list_configs(args.pattern):
        print(config)
    return 0


def _scans(args: argparse.Namespace) -> int:
    from visionssm.scans import get_scan, list_scans, plot_scans

    if args.plot is not None:
        check_writable(args.plot)
        plot_scans(args.plot)
        print(f'wrote {args.plot}')
        return 0
    rows = []
    for name in list_scans():
        strategy = get_scan(name).strategy
        counts = ', '.join(map(str, strategy.directions)) + (', any' if strategy.any_directions else '')
        arguments = ', '.join(f'{key}={value}' for key, value in strategy.args.items())
        rows.append([name, counts, arguments, strategy.meaning])
    table(['scan', 'directions', 'arguments', 'meaning'], rows)
    return 0


def _viz(args: argparse.Namespace) -> int:
    from visionssm.apps.classify import load_classifier
    from visionssm.apps.features import image_files
    from visionssm.apps.viz import visualize

    files = image_files(args.images)
    model = asked_model(args)
    before = load_classifier(args.model, args.before, args.img_size) if args.before is not None else None
    report = visualize(
        model,
        files,
        args.output,
        args.model,
        before=before,
        img_size=args.img_size,
        layers=args.layers,
        index=args.index,
        say=say,
    )
    print(f'wrote {report}')
    return 0
