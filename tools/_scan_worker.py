"""The scan of one checkout, timed in a process of its own: what `tools/benchmark.py scan --baseline` runs.

It imports `visionssm` from its `PYTHONPATH` and uses nothing but `selective_scan`, so that any checkout will do. Every
line of the input asks for one thing, {"shape": [B, H, W, D, K, N]} or {"run": "forward"}, and is answered by a line of
JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _scan_problem import scan_problem, timed_scan

torch.set_num_threads(int(sys.argv[1]))
passes = {}
for line in sys.stdin:
    request = json.loads(line)
    if 'shape' in request:
        passes = timed_scan('cpu', *scan_problem(*request['shape']))
        print('null', flush=True)
    else:
        passes[request['run']]()  # threads of the process that ran before spin for a while, and caches are cold
        print(passes[request['run']](), flush=True)
