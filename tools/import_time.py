"""What `import visionssm` costs beside `import timm`, which it needs: medians of fresh interpreters, taken in turn.

python tools/import_time.py [--runs 10]

Exit code 1 if the ratio is above --most.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEASURE = 'import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)'


def import_seconds(module: str) -> float:
    """Seconds that importing `module` takes in a fresh interpreter, its own start not counted."""
    command = [sys.executable, '-c', MEASURE.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=10, help='interpreters per module; default: 10')
    parser.add_argument('--most', type=float, default=1.10, help='largest ratio allowed; default: 1.10')
    args = parser.parse_args()
    modules = ('timm', 'visionssm')
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    for module in modules:
        import_seconds(module)  # files into the cache, bytecode written
    for _ in range(args.runs):
        for module in modules:
            seconds[module].append(import_seconds(module))
    for module in modules:
        values = seconds[module]
        print(f'{module:10} median {statistics.median(values):.3f} s, {min(values):.3f} to {max(values):.3f}')
    # of neighbouring pairs, so that a change of load during the runs does not count
    ratio = statistics.median(ours / base for base, ours in zip(seconds['timm'], seconds['visionssm'], strict=True))
    print(f'ratio of neighbours, median: {ratio:.3f} (at most {args.most:.2f})')
    return 0 if ratio <= args.most else 1


if __name__ == '__main__':
    sys.exit(main())
