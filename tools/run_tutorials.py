"""Run the tutorials of docs/tutorials, and keep them with their outputs as build/tutorials/NAME.ipynb.

    python tools/run_tutorials.py --data FOLDER [NAME ...]

Exit code: 0 if all ran, 1 if a cell of one raised an error, 2 if there is no such tutorial.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from website import tutorials

from visionssm.files import write_whole


def run(name: str) -> float:
    """Run a tutorial in a new kernel of this Python, and write it; return the seconds it took.

    Raises:
        ValueError: If there is none of this name.
        CellExecutionError: If a cell of it raises an error.
    """
    notebook = tutorials.read(name)
    tutorials.RUN.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tutorials.RUN / 'runs' / name, ignore_errors=True)  # what an earlier run wrote
    start = time.perf_counter()
    resources = {'metadata': {'path': str(tutorials.RUN)}}
    NotebookClient(notebook, timeout=600, kernel_name='python3', resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)  # times of day
    write_whole(tutorials.RUN / f'{name}.ipynb', nbformat.writes(notebook))
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(tutorials.names())}; default: all')
    parser.add_argument(
        '--data', type=Path, help='folder of data sets to use instead of downloads, such as FashionMNIST'
    )
    args = parser.parse_args(argv)
    if args.data is not None:
        if not args.data.is_dir():
            parser.error(f'no folder {args.data}')
        shutil.copytree(args.data, tutorials.RUN / 'data', dirs_exist_ok=True)
    # one: more threads gain little on work this small, and results would depend on the number of cores
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:IProgress not found')  # progress bars are not for pages
    for name in args.names or tutorials.names():
        try:
            print(f'{name}: {run(name):.0f} s', flush=True)
        except ValueError as error:
            parser.error(str(error))
        except CellExecutionError as error:
            print(f'{name}: {error}', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
