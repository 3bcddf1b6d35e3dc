"""What a run shows: a bar or plain lines, tables of steps and epochs, TensorBoard, and a picture at the end."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from visionssm.extras import check_extra
from visionssm.files import read_small, write_whole

from .loop import Epoch, Progress
from .recipe import Recipe

STEPS = ('step', 'epoch', 'loss', 'gradient_norm', 'lr', 'images_per_second', 'memory_mib', 'skipped')
EPOCHS = ('epoch', 'loss', 'accuracy', 'seconds')


def check_extras(recipe: Recipe) -> None:
    """Raise `MissingExtraError` unless what a run by `recipe` needs can be imported."""
    needed = ['matplotlib', 'tqdm']
    needed += ['tensorboard'] if recipe.tensorboard else []
    needed += ['sklearn'] if recipe.data == 'digits' else []
    check_extra('training', 'train', *needed)


class Log:
    """The log of a run, kept by its first process.

    Args:
        folder: Where `steps.csv`, `epochs.csv`, `run.png` and `tensorboard/` are written.
        progress: Where the run begins; rows of later steps, of a process that was killed, are dropped.
        updates: Updates of the whole run.
        epochs: Epochs of the whole run.
        batch_size: Images per update.
        every: Updates between rows.
        device: That computes.
        say: Takes lines of text for the user.
        bar: Draw a progress bar instead of a line per epoch.
        tensorboard: Write TensorBoard events, too.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        updates: int,
        epochs: int,
        batch_size: int,
        every: int,
        device: torch.device,
        say: Callable[[str], None],
        bar: bool,
        tensorboard: bool,
    ) -> None:
        from tqdm import tqdm

        self.folder, self.epochs, self.batch_size, self.every = folder, epochs, batch_size, every
        self.device, self.show, self.drawn = device, say, bar
        self.rate = math.nan
        self.mark = progress.step, time.perf_counter()
        kept = [row for row in read_table(folder / 'steps.csv') if int(row['step']) <= progress.step]
        write_table(folder / 'steps.csv', STEPS, [[row[name] for name in STEPS] for row in kept])
        self._write_epochs(progress)
        self.stream = (folder / 'steps.csv').open('a', newline='')
        self.bar = tqdm(
            total=updates, initial=progress.step, disable=not bar, unit='step', dynamic_ncols=True, leave=False
        )
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / 'tensorboard'), purge_step=progress.step + 1)

    def say(self, line: str) -> None:
        """Show a line of text, above the bar if there is one."""
        if self.drawn:
            self.bar.write(line, file=sys.stderr)
        else:
            self.show(line)

    def step(self, progress: Progress, lr: float) -> None:
        """Note an update."""
        self.bar.update()
        if progress.step % self.every:
            return
        step, then = self.mark
        self.mark = progress.step, time.perf_counter()
        self.rate = (progress.step - step) * self.batch_size / (self.mark[1] - then)
        memory = memory_mib(self.device)
        values = (progress.loss, progress.norm, lr, self.rate, memory, progress.skipped)
        # the shortest text that reads back as the same number, so curves of two runs can be compared to the bit
        row = (progress.step, progress.epoch + 1, *map(repr, values[:3]), f'{self.rate:.1f}', f'{memory:.0f}')
        csv.writer(self.stream).writerow([*row, progress.skipped])
        self.stream.flush()
        if self.writer is not None:
            for name, value in zip(STEPS[2:], values, strict=True):
                self.writer.add_scalar(f'train/{name}', value, progress.step)
        self.bar.set_postfix_str(f'loss {progress.loss:.3f}, {self.rate:.0f} images/s, {memory:.0f} MiB', refresh=False)

    def epoch(self, progress: Progress) -> None:
        """Note the end of an epoch, evaluation included."""
        epoch = progress.history[-1]
        self._write_epochs(progress)
        left = epoch.seconds / epoch.number * (self.epochs - epoch.number)
        text = f'epoch {epoch.number}/{self.epochs}: loss {epoch.loss:.3f}'
        if not math.isnan(epoch.accuracy):
            text += f', accuracy {epoch.accuracy:.2%}'
        rate = '' if math.isnan(self.rate) else f', {self.rate:.0f} images/s'
        skipped = f', {progress.skipped} updates skipped' if progress.skipped else ''
        self.say(
            f'{text}{rate}, {memory_mib(self.device):.0f} MiB{skipped}, {_time(epoch.seconds)}, {_time(left)} left'
        )
        if self.writer is not None:
            self.writer.add_scalar('epoch/loss', epoch.loss, epoch.number)
            self.writer.add_scalar('epoch/accuracy', epoch.accuracy, epoch.number)
            self.writer.flush()
        self.mark = progress.step, time.perf_counter()  # throughput leaves the evaluation out

    def _write_epochs(self, progress: Progress) -> None:
        rows = [[e.number, repr(e.loss), repr(e.accuracy), f'{e.seconds:.2f}'] for e in progress.history]
        write_table(self.folder / 'epochs.csv', EPOCHS, rows)

    def close(self) -> None:
        """Close the bar and the files."""
        self.bar.close()
        self.stream.close()
        if self.writer is not None:
            self.writer.close()


def memory_mib(device: torch.device) -> float:
    """Peak memory so far: what was allocated on a GPU, or what this process took."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == 'darwin' else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def read_table(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; a last line that was cut off is left out. None if there is no file."""
    if not file.is_file():
        return []
    text = read_small(file, 1 << 28)
    whole = text[: text.rfind('\n') + 1]
    return list(csv.DictReader(io.StringIO(whole)))


def write_table(file: Path, names: tuple[str, ...], rows: list[list[Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO(newline='')
    csv.writer(text).writerows([names, *rows])
    write_whole(file, text.getvalue())


def draw(folder: Path, title: str, history: list[Epoch], updates: int) -> None:
    """Draw `run.png`: loss, accuracy, learning rate, throughput. Needs matplotlib.

    Args:
        folder: Of the run, with its table of steps.
        title: Above the picture.
        history: One entry per epoch.
        updates: Per epoch.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_table(folder / 'steps.csv')
    steps, loss, lr, rate, norm = (
        [float(row[name]) for row in rows] for name in ('step', 'loss', 'lr', 'images_per_second', 'gradient_norm')
    )
    figure = Figure(figsize=(12, 7), facecolor='white', layout='constrained')
    figure.suptitle(title, x=0.01, ha='left', weight='bold')
    axes = figure.subplots(2, 2)
    middles = [(epoch.number - 0.5) * updates for epoch in history]
    axes[0, 0].plot(steps, loss, color='#9aa4b1', linewidth=0.8, label='each logged update')
    axes[0, 0].plot(middles, [e.loss for e in history], color='#1f5fa8', marker='.', label='mean of epoch')
    axes[0, 0].legend(frameon=False)
    _label(axes[0, 0], 'training loss', 'update')
    evaluated = [(e.number, 100 * e.accuracy) for e in history if not math.isnan(e.accuracy)]
    axes[0, 1].plot(*zip(*evaluated, strict=True) if evaluated else ([], []), color='#2f7d4f', marker='.')
    best = f', best {max(accuracy for _, accuracy in evaluated):.2f} %' if evaluated else ''
    _label(axes[0, 1], f'accuracy in percent{best}', 'epoch')
    axes[0, 1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1, 0].plot(steps, lr, color='#7a2f8f')
    _label(axes[1, 0], 'learning rate', 'update')
    twin = axes[1, 0].twinx()
    twin.plot(steps, norm, color='#c9a227', linewidth=0.8)
    twin.set_ylabel('norm of the gradient', color='#8a6d10')
    twin.set_ylim(bottom=0)
    axes[1, 1].plot(steps, rate, color='#b0562b', linewidth=0.8)
    axes[1, 1].set_ylim(bottom=0)
    _label(axes[1, 1], 'images per second', 'update')
    write_whole(folder / 'run.png', lambda stream: figure.savefig(stream, dpi=110, format='png'))


def _label(axes: Any, title: str, x: str) -> None:
    axes.set_title(title, loc='left', size=11)
    axes.set_xlabel(x)
    axes.grid(color='#e6e9ed')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
