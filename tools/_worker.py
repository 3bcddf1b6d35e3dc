"""A process that is measured, and the clocks it is measured by; without torch, whose memory would count."""

from __future__ import annotations

import json
import subprocess
import sys
import time

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


class Worker:
    """A process that answers every line of JSON with one."""

    def __init__(self, *command: object, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: object) -> float:
        """Its answer."""
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError('a process that is measured ended; its traceback is above')
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()
        self._process.wait()
