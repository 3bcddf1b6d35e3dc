"""Folders of weights as they lie on the Hub."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .output import pairs, path, table


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser('convert', help="any checkpoint to a folder in timm's layout, with a model card")
    command.add_argument('checkpoint', type=path, metavar='CHECKPOINT', help="file of weights, the authors' or yours")
    command.add_argument('--model', required=True, metavar='NAME', help='registered name')
    command.add_argument('--output', required=True, type=path, metavar='DIR', help='folder to write')
    command.add_argument('--source', default='', metavar='TEXT', help='where the file is from, for the card')
    command.add_argument(
        '--license', default='', metavar='ID', help='of the weights, such as mit; default: as released'
    )
    command.add_argument(
        '--model-kwargs', nargs='+', default=[], type=_assignment, metavar='KEY=VALUE', help='such as img_size=384'
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser('push', help="publish a folder in timm's layout on the Hub; shows what it would do")
    command.add_argument('folder', type=path, metavar='DIR', help='as convert, demo or train wrote it')
    command.add_argument('repo_id', metavar='OWNER/NAME')
    command.add_argument('--yes', action='store_true', help='do it')
    command.add_argument('--private', action='store_true', help='make the repository, if it is new, private')
    command.add_argument(
        '--i-have-the-right', action='store_true', help='to publish weights whose licence is unknown or contradictory'
    )
    command.set_defaults(run=_push)


def _convert(args: argparse.Namespace) -> int:
    from visionssm.hub.convert import convert

    done = convert(args.checkpoint, args.model, args.output, dict(args.model_kwargs), args.source, args.license)
    what = f'{done.num_classes} classes' if done.num_classes else 'a backbone, no classifier'
    pairs(
        [
            ('model', f'{args.model}, {what}'),
            ('release', done.release or 'not a known one'),
            ('licence', done.license),
            *(
                (heading, ', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else ''))
                for heading, names in (
                    ('left out', done.left_out),
                    ('in a separate file', done.extra),
                    ('left as in a new model', done.fresh),
                )
                if names
            ),
        ]
    )
    print(f"wrote {done.folder}; it loads by timm.create_model('local-dir:{done.folder}', pretrained=True)")
    return 0


def _push(args: argparse.Namespace) -> int:
    from visionssm.hub.push import plan, upload

    made = plan(args.folder, args.repo_id)
    table(['file', 'bytes'], [[name, f'{made.size(name):,}'] for name in made.files])
    pairs([('to', made.repo_id), ('card', made.title), ('licence', made.license)])
    if made.left_out:
        print(f'left out because they may be pickles: {", ".join(made.left_out)}')
    refusal = f'{"; ".join(made.warnings)}. If you have it, add --i-have-the-right'
    if made.warnings and args.yes and not args.i_have_the_right:
        raise ValueError(refusal)
    if not args.yes:
        if made.warnings and not args.i_have_the_right:
            print(f'would be refused: {refusal}')
        print('nothing was uploaded: this only shows what would be; add --yes to do it')
        return 0
    print(f'uploaded: {upload(made, args.private)}')
    return 0


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f'{text!r} is not allowed; give KEY=VALUE')
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:  # a name, such as that of a scan order
        return key, value
