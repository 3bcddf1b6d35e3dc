"""What this machine offers, and whether it computes what it should."""

from __future__ import annotations

import argparse

from .output import one_line, pairs, table


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser('env', help='versions, devices, and which backend of which op serves which')
    command.set_defaults(run=_env)

    command = commands.add_parser('selfcheck', help='check every scan backend on this machine against the definition')
    command.add_argument('--backend', nargs='+', default=[], metavar='NAME', help='default: all that serve the device')
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.set_defaults(run=_selfcheck)


def _env(args: argparse.Namespace) -> int:
    from visionssm.catalog import machine as environment

    for heading, rows in (
        ('versions', environment.versions()),
        ('devices', environment.devices()),
        ('tools', environment.tools()),
    ):
        print(heading)
        pairs(rows, indent='  ')
        print()
    print('backends')
    table(['op', 'device', 'backend', 'here'], environment.backends())
    return 0


def _selfcheck(args: argparse.Namespace) -> int:
    from visionssm.apps.selfcheck import check, refusals
    from visionssm.catalog.machine import check_device
    from visionssm.testing import tolerance

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
    table(['backend', 'dtype', 'cases', 'output error', 'gradient error', '', 'worst gradient, or failure'], lines)
    if not args.backend:
        for name, reason in refused.items():
            print(f'{name} was not checked: {one_line(ValueError(reason))}')
    passed = all(row.passed for row in rows)
    print(f'{"all" if passed else "NOT all"} within tolerance of the definition in fp64, on {device}')
    return 0 if passed else 1
