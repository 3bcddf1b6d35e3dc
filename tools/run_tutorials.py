"""Run the tutorials of docs/tutorials, and keep them with their outputs as build/tutorials/NAME.ipynb.

    python tools/run_tutorials.py [NAME ...]

They keep data sets in build/tutorials/data and write to build/tutorials/runs/NAME. `fine-tuning` comes before
`nearest-neighbours`, which uses its models; `mask-rcnn` wants an environment with OpenMMLab.

Exit code: 0 if all ran, 1 if a cell of one raised an error, 2 if there is no such tutorial.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time

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
    args = parser.parse_args(argv)
    # one: more threads gain little on work this small, and results would depend on the number of cores
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    # of tqdm, which misses widgets, and of mmengine's imports
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:IProgress not found,ignore:pkg_resources is deprecated')
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
