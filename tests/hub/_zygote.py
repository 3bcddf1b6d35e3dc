"""Runs jobs in forks of a process that has imported everything: each is a new client, without the seconds of imports.

One job per line of stdin, as JSON: {"code", "env", "output"} starts one and answers with its process id; {"wait": id}
waits for it and answers with its exit code.
"""

import hashlib
import json
import os
import sys
import traceback

import timm
import torch

import visionssm  # noqa: F401  registers the models


def digest(model):
    """One number for all weights of a model."""
    total = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        total.update(name.encode() + x.numpy().tobytes())
    return total.hexdigest()


def create(name='test_vim', cache_dir=None, **overlay):
    """Create a pretrained model the public way; print what came of it in one line."""
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay or None, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        print(f'{type(error).__name__}: {error}')
    else:
        print(f'ok {digest(model)}')


def main():
    for line in sys.stdin:
        job = json.loads(line)
        if 'wait' in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job['wait'], 0)[1]), flush=True)
            continue
        process = os.fork()
        if process:
            print(process, flush=True)
            continue
        os.environ.update(job['env'])
        output = os.open(job['output'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 0
        try:
            exec(job['code'], {'create': create, 'digest': digest, 'timm': timm, 'torch': torch})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    os._exit(0)  # nothing to tidy up that would be worth the seconds


if __name__ == '__main__':
    main()
