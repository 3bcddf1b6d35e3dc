"""Run by torchrun in test_parallel.py: what two processes compute, written to a folder."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from visionssm.train import load_recipe, parallel, run
from visionssm.train.parallel import start_processes

SMALL = ['batch_size=32', 'train_samples=64', 'workers=0', 'warmup_epochs=1', 'hflip=0', 'log_steps=1', 'lr=1e-3']
RECIPES = {
    'ddp': ('test_vmamba', 2, []),
    'fsdp': ('test_vim', 1, ['parallel=fsdp', 'val_split=null', 'model_args={depth: 2, embed_dim: 32}']),
}
AUGMENTED = [
    'mixup=0.8',
    'random_erase=0.25',
    'drop_path=0.1',
    'ema=0.9',
    'clip_grad=1',
    'epochs=2',
    'checkpoint_steps=2',
]


def make_recipe(model, extra=()):
    return load_recipe(None, [*SMALL, *extra], model=model, data='digits')


def gradients(recipe, processes):
    """Gradients of the first update in fp64, whole, by name."""
    torch.set_default_dtype(torch.float64)
    try:
        trainer = run.Trainer(recipe, processes, print)
    finally:
        torch.set_default_dtype(torch.float32)
    trainer.model.train()
    batches = iter(trainer.data.train_batches(0, 0))
    for i in range(trainer.data.accumulate):
        with trainer.processes.synchronising(i == trainer.data.accumulate - 1):
            images, labels = next(batches)
            (trainer.objective(trainer.forward, images.double(), labels) / trainer.data.accumulate).backward()
    grads = {name: p.grad for name, p in trainer.model.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, 'full_tensor') else g for name, g in grads.items()}


def interrupted_run(recipe, output):
    """SIGTERM to one process after the third update, then on to the end."""
    step = parallel.Processes.mean
    calls = []

    def mean(self, values):
        calls.append(None)
        if len(calls) == 3 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            values = [values[0], 1.0]
        return step(self, values)

    parallel.Processes.mean = mean
    try:
        run.train(recipe, output, print, device='cpu')
    except SystemExit as stop:
        code = stop.code
    parallel.Processes.mean = step
    run.train(recipe, output, print, resume='auto', device='cpu')
    return code


def main(folder, processes):
    codes = {}
    for kind, (model, accumulate, extra) in RECIPES.items():
        recipe = make_recipe(model, [*extra, f'micro_batch={16 // accumulate}', 'epochs=1', 'warmup_epochs=0'])
        grads = gradients(recipe, processes)
        if processes.rank == 0:
            torch.save(grads, folder / f'{kind}.pt')
        recipe = make_recipe(model, [*extra, *AUGMENTED])
        run.train(recipe, folder / f'{kind}-whole', print, device='cpu')
        codes[kind] = interrupted_run(recipe, folder / f'{kind}-interrupted')
    if processes.rank == 0:
        (folder / 'codes.json').write_text(json.dumps(codes))


if __name__ == '__main__':
    torch.set_num_threads(1)
    with start_processes('cpu') as group:  # one for all that follows
        main(Path(sys.argv[1]), group)
