"""A model in several forms: eager fp32, half precision and compiled; and how much of eager's time is no operator."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from _scan_problem import seconds

from visionssm.compare.cost import interleaved_medians

FORMS = ('fp32', 'bf16', 'autocast', 'compiled')
FORM_MODELS = ('vmamba_tiny_s1l8', 'swin_tiny_patch4_window7_224', 'vim_tiny_patch16_224', 'deit_tiny_patch16_224')


def forward(model: torch.nn.Module, x: torch.Tensor, form: str) -> Callable[[], torch.Tensor]:
    """A forward pass of `model`, which it changes if the form has other weights."""
    if form == 'bf16':
        model, x = model.bfloat16(), x.bfloat16()
    elif form == 'compiled':
        model = torch.compile(model)

    def run() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=form == 'autocast'):
            return model(x)

    return run


def share_between_operators(run: Callable[[], torch.Tensor], rounds: int = 5) -> float:
    """Which part of the time of `run` no operator of torch or ours is running: Python and what it calls."""
    from torch.profiler import ProfilerActivity, profile

    shares = []
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as record:
            run()
        events = [event for event in record.events() if event.cpu_parent is None]
        spans = [event.time_range for event in events if event.thread == events[0].thread]
        whole = max(span.end for span in spans) - min(span.start for span in spans)
        shares.append(1 - sum(span.end - span.start for span in spans) / whole)
    return statistics.median(shares)


def bench_forms(
    create: Callable[[str, int], torch.nn.Module], name: str, side: int, batch: int, rounds: int, forms: list[str]
) -> list[dict]:
    """Milliseconds of every form of a model, taken in turn.

    Args:
        create: Makes the model in eval mode, given its name and the side of images.
        name: The model.
        side: Of its images.
        batch: Images at once.
        rounds: Timed runs of each form.
        forms: Of `FORMS`; fp32 is measured in any case.
    """
    x = torch.randn(batch, 3, side, side)
    runs = {form: forward(create(name, side), x, form) for form in dict.fromkeys(['fp32', *forms])}
    medians = interleaved_medians({form: (partial(seconds, run), rounds) for form, run in runs.items()})
    between = share_between_operators(runs['fp32'])
    rows = []
    for form, median in medians.items():
        row = {'model': f'{name}@{side}', 'form': form, 'batch': batch, 'threads': torch.get_num_threads()}
        row |= {'ms': 1e3 * median, 'over_fp32': medians['fp32'] / median}
        if form == 'fp32':
            row['between_operators'] = between
        print(
            '{model:40} {form:9} batch {batch}, threads {threads}: {ms:8.1f} ms {over_fp32:5.2f}x'.format(**row)
            + (f' {100 * between:5.1f} % between operators' if form == 'fp32' else ''),
            flush=True,
        )
        rows.append(row)
    return rows
