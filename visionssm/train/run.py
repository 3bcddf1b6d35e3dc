"""A training run from recipe to folder: set up, resume, train, keep checkpoints, write."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from visionssm.files import check_extendable, write_whole

from . import log as logs
from .checkpoint import Checkpoints, random_states, read_checkpoint, seed_cpu, set_random_states
from .data import ImageData, channels_of, open_source
from .loop import Epoch, NonFiniteLossError, Progress, fit
from .model import create_model, freeze_backbone, save_model
from .objective import Objective, Teacher
from .parallel import (
    Processes,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    start_processes,
)
from .recipe import Recipe
from .shuffle import shuffle_layers

# what may differ when a run goes on: the result does not depend on it, except for rounding
_FREE = {
    'source', 'reported', 'command', 'data_dir', 'workers', 'max_bad_images', 'micro_batch', 'grad_checkpointing',
    'precision', 'compile', 'parallel', 'on_non_finite', 'checkpoint_steps', 'keep_last', 'log_steps', 'tensorboard',
}  # fmt: skip
_TERMINATED = 128 + signal.SIGTERM


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The keys and values that the result of a run depends on, rounding aside."""
    return {key: value for key, value in asdict(recipe).items() if key not in _FREE}


class Trainer:
    """All parts of a run, ready to train.

    Args:
        recipe: What to train and how.
        processes: This process among those that train together.
        say: Takes lines of text for the user.

    Raises:
        ValueError: If parts of the recipe contradict each other or the data.
        FileNotFoundError: If there are no such weights.
    """

    def __init__(self, recipe: Recipe, processes: Processes, say: Callable[[str], None]) -> None:
        self.recipe, self.processes = recipe, processes
        device = processes.device
        if recipe.parallel == 'fsdp' and not processes.together:
            raise ValueError('parallel: fsdp spreads a model over processes; start them with torchrun')
        if recipe.parallel == 'fsdp' and recipe.precision == 'fp16':
            raise ValueError('parallel: fsdp goes with bf16 or fp32')
        seed_cpu(recipe.seed)
        channels = channels_of(recipe)
        source = open_source(recipe, recipe.train_split, True, channels)
        names = getattr(source, 'classes', None)
        self.model, self.image = create_model(recipe, channels, recipe.num_classes or (len(names) if names else None))
        self.data = ImageData(recipe, source, self.image, self.model.num_classes, processes, say)
        self.model_args = {**recipe.model_args, **({'drop_path_rate': recipe.drop_path} if recipe.drop_path else {})}
        self.to_train: Callable[[nn.Module], Any] = nn.Module.train
        if recipe.freeze:
            self.to_train = freeze_backbone(self.model)
        if recipe.grad_checkpointing:
            self.model.set_grad_checkpointing()
        teacher = None
        if recipe.teacher:
            teacher = Teacher(recipe.teacher, self.image, self.model.num_classes).to(device)
            if hasattr(self.model, 'set_distilled_training'):
                self.model.set_distilled_training()
        self.model.to(device)
        self.ema = None
        if recipe.ema is not None:
            self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=recipe.ema_warmup)
        if recipe.shuffle_layers:
            shuffle_layers(self.model, recipe.shuffle_layers)
        if recipe.parallel == 'fsdp':
            for model in (self.model, *([self.ema.module] if self.ema else [])):
                processes.shard(model)
        self.forward = processes.wrap(self.model)
        if recipe.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = self._make_optimizer()
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            recipe.schedule,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            warmup_prefix=recipe.warmup_prefix,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.data.updates,
        )
        dtype, self.scaler = _precision(recipe.precision, device)
        self.progress = Progress()
        self.objective = Objective(recipe, device.type, dtype, self.progress, teacher, self.ema)
        self.best = -math.inf
        if device.type == 'cuda':
            torch.cuda.manual_seed(recipe.seed)
        seed_cpu(recipe.seed, processes.rank)  # dropout and mixing differ between processes, the first weights do not

    def _make_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        given = {'betas': recipe.betas, 'eps': recipe.opt_eps}
        try:
            return create_optimizer_v2(
                self.model,
                recipe.optimizer,
                lr=recipe.lr,
                weight_decay=recipe.weight_decay,
                momentum=recipe.momentum,
                layer_decay=recipe.layer_decay,
                **{name: value for name, value in given.items() if value is not None},
            )
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f'optimizer {recipe.optimizer!r} cannot be made: {error}') from error

    def evaluate(self, model: nn.Module) -> float:
        """Top-1 accuracy of `model` on the evaluation images of all processes."""
        model.eval()
        self.processes.share_buffers(model)
        right = count = 0
        with (
            torch.no_grad(),
            torch.autocast(self.processes.device.type, self.objective.dtype, enabled=self.objective.dtype is not None),
        ):
            for images, labels in self.data.eval_batches():
                right += int((model(images).argmax(1) == labels).sum())
                count += int((labels >= 0).sum())
        right, count = self.processes.sum([right, count])
        return right / count

    def state(self) -> dict[str, Any]:
        """All the run needs to go on, complete on the first process; all processes must call it."""
        progress = {**vars(self.progress), 'history': [vars(epoch) for epoch in self.progress.history]}
        return {
            'progress': progress,
            'model': model_state(self.model),
            'model_ema': model_state(self.ema.module) if self.ema else None,
            'optimizer': optimizer_state(self.model, self.optimizer),
            'scaler': self.scaler.state_dict() if self.scaler else None,
            'random': self.processes.gather(random_states(self.processes.device)),
            'bad_images': sorted({name for names in self.processes.gather(self.data.bad) for name in names}),
            'best': self.best,
            'recipe': asdict(self.recipe),
        }

    def load(self, state: dict[str, Any], say: Callable[[str], None]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: If it belongs to another recipe.
        """
        mine, other = decisive(self.recipe), state['recipe']
        differ = [key for key in mine if mine[key] != other.get(key)]
        if differ:
            texts = ', '.join(f'{key} ({other.get(key)!r}, now {mine[key]!r})' for key in differ)
            raise ValueError(f'the checkpoint belongs to another recipe: {texts}')
        load_model_state(self.model, state['model'])
        if self.ema:
            load_model_state(self.ema.module, state['model_ema'])
        load_optimizer_state(self.model, self.optimizer, state['optimizer'])
        if self.scaler and state['scaler']:
            self.scaler.load_state_dict(state['scaler'])
        history = [Epoch(**epoch) for epoch in state['progress']['history']]
        vars(self.progress).update({**state['progress'], 'history': history, 'stop': False})
        self.data.bad, self.best = list(state['bad_images']), state['best']
        if len(state['random']) == self.processes.count:
            set_random_states(state['random'][self.processes.rank], self.processes.device)
        else:
            say(f'the checkpoint is from a run of {len(state["random"])} processes: random states start anew')
            seed_cpu(self.recipe.seed, self.processes.rank, self.progress.step)

    def fit(self, **watching: Any) -> list[Epoch]:
        """Train; `watching` holds the callbacks that `fit` takes."""
        return fit(
            self.model,
            self.data.train_batches,
            self.objective,
            self.optimizer,
            self.scheduler,
            self.evaluate if self.recipe.evaluated else None,
            self.recipe.epochs,
            forward=self.forward,
            processes=self.processes,
            accumulate=self.data.accumulate,
            ema=self.ema,
            clip_grad=self.recipe.clip_grad,
            scaler=self.scaler,
            skip_non_finite=self.recipe.on_non_finite == 'skip',
            to_train=self.to_train,
            progress=self.progress,
            **watching,
        )


def _precision(name: str, device: torch.device) -> tuple[torch.dtype | None, torch.amp.GradScaler | None]:
    """The dtype for autocast, if any, and the scaler that fp16 needs."""
    if name == 'auto':
        name = 'bf16' if device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False) else 'fp32'
    if name == 'fp16':
        return torch.float16, torch.amp.GradScaler(device.type)
    return (torch.bfloat16 if name == 'bf16' else None), None


def train(
    recipe: Recipe,
    output: Path,
    say: Callable[[str], None],
    resume: str = 'no',
    device: str = 'auto',
    bar: bool = False,
) -> list[Epoch]:
    """Train by a recipe, in this process or in those that torchrun started; the result is a folder.

    In it are `recipe.yaml`, `steps.csv`, `epochs.csv`, `run.png`, `checkpoints/`, and the trained model (the average of
    the weights, if there is one) as `config.json` and `model.safetensors`, which `local-dir:` loads.

    Args:
        recipe: What to train and how.
        output: The folder.
        say: Takes lines of text for the user.
        resume: 'no'; 'auto': go on from the newest checkpoint in `output`, if there is one; or a checkpoint.
        device: A device of torch, or 'auto'.
        bar: Draw a progress bar.

    Returns:
        One entry per epoch.

    Raises:
        ValueError: If the recipe can't be carried out, or `output` holds a run and `resume` is 'no'.
        OSError: If something can't be read or written.
        NonFiniteLossError: If the loss or its gradient is not finite and the recipe says to stop.
        SystemExit: With code 143, after a checkpoint, if a process gets SIGTERM.
        MissingExtraError: If a package is missing.
    """
    logs.check_extras(recipe)
    with start_processes(device) as processes:
        first = processes.rank == 0
        quiet = say if first else lambda line: None
        checkpoints = Checkpoints(output / 'checkpoints', recipe.keep_last)
        check_extendable(output, [checkpoints.folder.name, 'recipe.yaml'], 'training')
        if resume == 'no' and checkpoints.files():
            raise ValueError(f'{output} holds a run; go on with --resume auto, or give another folder')
        trainer = Trainer(recipe, processes, quiet)
        found = checkpoints.latest() if resume in ('auto', 'no') else (Path(resume), read_checkpoint(Path(resume)))
        if found is not None:
            trainer.load(found[1], quiet)
            quiet(f'going on from {found[0]}, epoch {trainer.progress.epoch + 1}, update {trainer.progress.step}')
        del found
        if len(set(processes.gather(trainer.progress.step))) > 1:
            raise ValueError(f'processes see different checkpoints: {output} must be where all of them see it')
        if first:
            text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
            write_whole(output / 'recipe.yaml', text)
        quiet(describe(trainer))
        _run(trainer, checkpoints, output, quiet, bar and first)
        _finish(trainer, output, quiet)
        return trainer.progress.history


def describe(trainer: Trainer) -> str:
    """The run in a line."""
    recipe, data = trainer.recipe, trainer.data
    parameters = sum(p.numel() for p in trainer.model.parameters())
    size = 'x'.join(map(str, trainer.image.input_size))
    precision = str(trainer.objective.dtype or torch.float32).removeprefix('torch.')
    share = f'{data.accumulate} x {trainer.processes.count} x {data.micro}'
    return (
        f'{recipe.model}: {parameters / 1e6:.2f} M parameters, {size}, {trainer.model.num_classes} classes; '
        f'{data.images} images, {data.updates} updates of {recipe.batch_size} ({share}) per epoch; '
        f'{precision} on {trainer.processes.device}'
    )


def _run(trainer: Trainer, checkpoints: Checkpoints, output: Path, say: Callable[[str], None], bar: bool) -> None:
    recipe, progress = trainer.recipe, trainer.progress
    first = trainer.processes.rank == 0
    log = None
    if first:
        log = logs.Log(
            output,
            progress,
            trainer.data.updates * recipe.epochs,
            recipe.epochs,
            recipe.batch_size,
            recipe.log_steps,
            trainer.processes.device,
            say,
            bar,
            recipe.tensorboard,
        )
        trainer.data.say = log.say

    def save(best: bool = False) -> None:
        state = trainer.state()
        if first:
            checkpoints.save(state, progress.step, best)
        trainer.processes.wait()  # anyone who stops now, or looks for it, finds it

    def on_step(progress: Progress) -> None:
        if log is not None:
            log.step(progress, max(group['lr'] for group in trainer.optimizer.param_groups))
        if progress.stop:
            save()
            say(f'asked to stop: checkpoint written at update {progress.step}; go on with --resume auto')
            raise SystemExit(_TERMINATED)
        if recipe.checkpoint_steps and progress.step % recipe.checkpoint_steps == 0:
            save()

    def on_epoch(epoch: Epoch) -> None:
        best = epoch.accuracy > trainer.best
        trainer.best = max(trainer.best, epoch.accuracy) if best else trainer.best
        save(best)
        if log is not None:
            log.epoch(progress)

    try:
        with _sigterm() as interrupted:
            trainer.fit(interrupted=interrupted, on_step=on_step, on_epoch=on_epoch)
    except NonFiniteLossError as error:
        kept = checkpoints.files()
        good = f'the last good checkpoint is {kept[-1]}' if kept else 'there is no checkpoint yet'
        raise NonFiniteLossError(f'{error}; {good}') from error
    finally:
        if log is not None:
            log.close()


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Within the context SIGTERM is only noted; the value says whether it came."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(trainer: Trainer, output: Path, say: Callable[[str], None]) -> None:
    recipe, history = trainer.recipe, trainer.progress.history
    last = history[-1]
    result = '' if math.isnan(last.accuracy) else f', {last.accuracy:.2%} on {recipe.evaluated}'
    weights = model_state(trainer.ema.module if trainer.ema else trainer.model)
    if trainer.processes.rank:
        return
    # a model in this process alone, wherever the weights were
    model, _ = create_model(replace(recipe, initial=None), trainer.image.input_size[0], trainer.model.num_classes)
    model.load_state_dict(weights)
    note = f'trained by `visionssm train` on {recipe.data}: {recipe.epochs} epochs{result}'
    save_model(model, output, trainer.data.classes, trainer.model_args, note)
    logs.draw(output, f'{recipe.model} on {recipe.data}{result}', history, trainer.data.updates)
    say(f'{recipe.model}{result} after {last.seconds:.0f} s of training; in {output}')
