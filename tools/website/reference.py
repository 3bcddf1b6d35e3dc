"""Tables and pictures of what the program has: commands, keys of recipes, scan orders."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from visionssm import cli
from visionssm.hub.card import table
from visionssm.scans import get_scan, list_scans, plot_scans
from visionssm.train import describe_fields

_COLUMNS = '90'  # of the help texts


def command_line() -> str:
    """The help of every command."""
    before = os.environ.get('COLUMNS')
    os.environ['COLUMNS'] = _COLUMNS  # argparse asks for it
    try:
        parser = cli._parser()
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        summaries = {action.dest: action.help or '' for action in commands._choices_actions}
        parts = [table(['command', 'what it does'], [[f'[`{name}`](#{name})', summaries[name]] for name in summaries])]
        for name, command in commands.choices.items():
            parts.append(f'## {name}\n\n```text\n{command.format_help().rstrip()}\n```')
    finally:
        if before is None:
            del os.environ['COLUMNS']
        else:
            os.environ['COLUMNS'] = before
    return '\n\n'.join(parts)


def recipe_keys() -> str:
    """What a recipe can set."""
    return table(
        ['key', 'default', 'meaning'], [[f'`{key}`', default, text] for key, default, text in describe_fields()]
    )


def scan_orders() -> str:
    """Every registered order."""
    rows = []
    for name in list_scans():
        order = get_scan(name)
        strategy, args = order.strategy, order.describe().partition(', ')[2]
        counts = [*map(str, strategy.directions), *(['any'] if strategy.any_directions else [])]
        rows.append([f'`{name}`', ', '.join(counts), args and f'`{args}`', strategy.meaning, strategy.source])
    return table(['order', 'directions', 'arguments', 'meaning', 'source'], rows)


def assets() -> dict[str, bytes]:
    """Pictures and data, by their place in the site."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / 'orders.svg'
        plot_scans(picture)
        return {'assets/scan-orders.svg': picture.read_bytes()}
