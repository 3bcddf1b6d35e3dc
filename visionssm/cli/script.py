"""Run other people's scripts with the models registered."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from types import TracebackType


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser(
        'run',
        help="run somebody else's script with the models of this package registered",
        usage='visionssm run SCRIPT.py [ARG ...]\n       visionssm run -m MODULE [ARG ...]',
        description="Run a script or module as Python does, such as timm's validate.py: it finds our models by name.",
    )
    command.add_argument('-m', dest='module', nargs=argparse.REMAINDER, help='module to run, and its arguments')
    command.add_argument('script', nargs=argparse.REMAINDER, help='script to run, and its arguments')
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """Run it as `__main__`; importing this package has registered the models."""
    target, *arguments = args.module or args.script or ['']
    if not target:
        raise ValueError('no script is given; give SCRIPT.py, or -m MODULE')
    # Python's own rules for sys.path[0], which `python -P` leaves out
    place = os.getcwd() if args.module else os.path.dirname(os.path.realpath(target))
    if not args.module and not os.path.exists(target):
        raise FileNotFoundError(f'no script at {target}')
    if not getattr(sys.flags, 'safe_path', False):
        sys.path[0] = place
    if args.module and not _is_module(target):
        raise ValueError(f'no module is named {target}')
    sys.argv = [target, *arguments]
    try:
        if args.module:
            runpy.run_module(target, run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(target, run_name='__main__')
    except SystemExit:
        raise
    except BaseException as error:  # what ends a script is the script's: its traceback, none of our messages
        error = error.with_traceback(_of_script(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:  # a package that it should be in
        if error.name and not name.startswith(error.name):
            raise
        return False


def _of_script(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames that run the script."""
    while traceback and traceback.tb_frame.f_globals.get('__name__') in (__name__, 'runpy'):
        traceback = traceback.tb_next
    return traceback
