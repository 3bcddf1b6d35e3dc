"""The command line, `visionssm`: parse, call, print. What it prints is made elsewhere, and imported on demand.

Exit codes: 0 done, 1 a check failed, 2 bad input (one line on stderr, no traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from visionssm.extras import MissingExtraError
from visionssm.ops import BackendUnavailableError
from visionssm.version import __version__

from . import hub, look, machine, script, training, use
from .output import one_line

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
    except BrokenPipeError:  # the reader of our output has had enough, as `head` does
        sys.stderr.close()
        return 0
    except USER_ERRORS as error:
        if args.traceback:
            raise
        print(f'visionssm: {one_line(error)}', file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='visionssm', description='Vision state-space backbones in timm: look, check, try.'
    )
    parser.add_argument('--version', action='version', version=f'visionssm {__version__}')
    parser.add_argument('--traceback', action='store_true', help='show the traceback of input errors, too')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for module in (look, machine, training, use, script, hub):
        module.add_commands(commands)
    return parser
