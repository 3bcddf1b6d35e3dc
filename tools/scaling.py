"""The figures of docs/scaling.md: what 64 GPUs exchange and read, against what they compute.

    python tools/scaling.py            # print the tables
    python tools/scaling.py --decode   # also measure how many JPEG files one core here decodes and augments

Parameters, multiply-adds and bytes are counted on the models themselves (no GPU, no memory for weights); the
divisors are assumptions, named in the tables. Nothing here is a measurement of training.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from pathlib import Path

import torch

from visionssm.catalog.macs import count_macs
from visionssm.catalog.models import sketch

MODELS = (('VMamba-B', 'vmamba_base_s2l15'), ('Vim-B', 'vim_base_patch16_224'))
ROOT = Path(__file__).resolve().parent.parent
GPUS, PER_NODE = 64, 8
BATCH = 64  # images per GPU and update
ACHIEVED = (25e12, 100e12, 400e12)  # FLOP/s per GPU; an H100 has 989e12 in bf16 at most
NETWORKS = (('25 Gb/s', 25e9 / 8), ('100 Gb/s', 100e9 / 8), ('8 x 400 Gb/s', 8 * 400e9 / 8))  # bytes/s per node
IMAGES, IMAGE_BYTES = 14_197_122, 147_897_477_120 / 1_281_167  # ImageNet-22k; mean file of ImageNet-1k's training set
SHARD_BYTES = 256e6
READERS = 8  # loader processes per GPU
EPOCHS = 90
# reported for 16,384 GPUs: 419 unexpected interruptions in 54 days (arXiv:2407.21783, section 3.3.4)
HOURS_PER_FAILURE = 16_384 * 54 * 24 / 419 / GPUS
DISK = 1e9  # bytes/s that one process writes to shared storage


def count(name: str) -> tuple[int, float]:
    """Parameters of a model, and FLOPs of a training step for one image: forward and twice that for backward."""
    model = sketch(name).eval()
    return sum(p.numel() for p in model.parameters()), 3 * 2 * count_macs(model, (3, 224, 224))


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [headings, ['---'] * len(headings), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def size(value: float) -> str:
    """Bytes, decimal units."""
    for unit in ('B', 'kB', 'MB', 'GB'):
        if value < 1000:
            return f'{value:.3g} {unit}'
        value /= 1000
    return f'{value:.3g} TB'


def milliseconds(value: float) -> str:
    """Seconds as milliseconds."""
    return f'{1e3 * value:.3g} ms'


def exchanged() -> str:
    """What is computed and sent in an update."""
    rows = []
    for label, name in MODELS:
        parameters, flops = count(name)
        ring = 2 * (GPUS - 1) / GPUS * 4 * parameters
        shared = 1.5 * ring
        rows.append(
            [
                label,
                f'{parameters / 1e6:.1f} M',
                f'{flops / 1e9:.1f} G',
                f'{BATCH * flops / 1e12:.2f} T',
                size(4 * parameters),
                size(ring),
                size(shared),
                f'{BATCH * flops / ring:,.0f}',
            ]
        )
    headings = ['', 'parameters', 'FLOPs per image', f'FLOPs per GPU, {BATCH} images', 'gradient, fp32']
    return table([*headings, 'sent per GPU, DDP', 'sent per GPU, FSDP', 'FLOPs per byte sent, DDP'], rows)


def shares() -> str:
    """Time on the wire against time of computing, by network and by how fast the GPUs compute."""
    rows = []
    for label, name in MODELS:
        parameters, flops = count(name)
        sent = 2 * (GPUS - 1) / GPUS * 4 * parameters
        for achieved in ACHIEVED:
            compute = BATCH * flops / achieved
            cells = [label, f'{achieved / 1e12:.0f} TFLOP/s', milliseconds(compute), f'{BATCH * GPUS / compute:,.0f}']
            for _, rate in NETWORKS:
                wire = sent / rate
                # the exchange runs beside the backward pass, two thirds of the computing
                hidden = 'hidden' if wire <= 2 / 3 * compute else f'+{(wire - 2 / 3 * compute) / compute:.0%}'
                cells.append(f'{milliseconds(wire)}, {hidden}')
            rows.append(cells)
    networks = [f'exchange at {name} per node' for name, _ in NETWORKS]
    return table(['', 'assumed per GPU', 'computing', 'images/s, all', *networks], rows)


def storage() -> str:
    """Shards, and what they must deliver."""
    total = IMAGES * IMAGE_BYTES
    shards = math.ceil(total / SHARD_BYTES)
    rows = [
        ['images, mean size (assumed: that of ImageNet-1k)', f'{IMAGES:,}, {size(IMAGE_BYTES)}'],
        ['all files', size(total)],
        [f'shards of {size(SHARD_BYTES)}', f'{shards:,}'],
        [
            f'loader processes ({GPUS} GPUs x {READERS}), shards for each',
            f'{GPUS * READERS}, {shards / GPUS / READERS:.1f}',
        ],
    ]
    for rate in (5_000, 20_000, 80_000):
        hours = EPOCHS * IMAGES / rate / 3600
        node = rate / (GPUS // PER_NODE)
        rows.append(
            [
                f'at {rate:,} images/s',
                f'{size(rate * IMAGE_BYTES)}/s from storage, {node:,.0f} images/s to decode per node, '
                f'{EPOCHS} epochs in {hours:,.0f} h',
            ]
        )
    return table(['data', ''], rows)


def failures() -> str:
    """Checkpoints and how often to write them."""
    rows = []
    for label, name in MODELS:
        parameters, _ = count(name)
        content = 4 * 4 * parameters  # weights, average, two moments
        seconds = content / DISK
        interval = math.sqrt(2 * seconds * HOURS_PER_FAILURE * 3600)
        lost = seconds / interval + interval / 2 / (HOURS_PER_FAILURE * 3600)
        rows.append(
            [label, size(content), f'{seconds:.1f} s', f'{interval / 60:.0f} min', f'{lost:.2%}', size(20 * parameters)]
        )
    headings = ['', 'checkpoint', f'written at {size(DISK)}/s', 'best interval', 'time lost']
    return table([*headings, 'states per GPU, DDP'], rows)


def tables() -> list[str]:
    """All tables of the page."""
    return [exchanged(), shares(), storage(), failures()]


def decode(seconds: float = 5.0) -> float:
    """Images per second that one core decodes, crops and augments, from real photographs of ImageNet's mean size."""
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from visionssm.train import load_recipe
    from visionssm.train.data import ImageConfig, train_transform

    files = []
    for pixels in load_sample_images().images:
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((500, 375)).save(stream, 'jpeg', quality=95)
        files.append(stream.getvalue())
    image = ImageConfig((3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 'bicubic', 0.875)
    transform = train_transform(load_recipe(ROOT / 'configs/train/vmamba_tiny_s1l8.yaml', data='none'), image)
    torch.set_num_threads(1)
    done, start = 0, time.process_time()  # of this process: a busy machine does not count
    while time.process_time() - start < seconds:
        transform(Image.open(io.BytesIO(files[done % len(files)])).convert('RGB'))
        done += 1
    print(f'files of {" and ".join(size(len(file)) for file in files)}')
    return done / (time.process_time() - start)


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--decode', action='store_true', help='measure decoding on one core of this machine')
    args = parser.parse_args()
    print('\n\n'.join(tables()))
    if args.decode:
        print(f'\n{decode():.0f} images/s decoded and augmented on one core')
    return 0


if __name__ == '__main__':
    sys.exit(main())
