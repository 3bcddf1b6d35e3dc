"""Measure the accuracy of classifiers: a JSON file for each, and one CSV for all.

On all of ImageNet's validation set, this is the command that turns a reported accuracy into a reproduced one.

    python tools/validate.py /data/imagenet --model vmamba_tiny_s1l8.in1k vim_tiny_patch16_224.in1k --device cuda
    python tools/validate.py wds//data/imagenet-wds --model vmamba_tiny_s1l8 --checkpoint vssm1_tiny.pth
    python tools/validate.py hfds/ILSVRC/imagenet-1k --model local-dir:runs/mine --dtype bfloat16 --resume

Exit code: 0 if all were measured, 2 for bad input, 130 if interrupted (then --resume goes on).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import visionssm  # noqa: F401  registers the models
from visionssm.apps.validate import DTYPES, Options, validate
from visionssm.catalog.machine import check_device
from visionssm.cli.output import path

FIELDS = {
    'split': 'default: validation',
    'data_dir': "where hfds/ keeps its files; default: datasets' cache",
    'class_map': 'text file of all class names in order, or JSON of names to indices; default: alphabetical',
    'checkpoint': "file of weights in ours or the authors' format, for one registered model",
    'scan': "scan order instead of the model's",
}


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA', help='folder of class folders, wds/FOLDER or hfds/NAME')
    parser.add_argument('--model', nargs='+', required=True, metavar='NAME', help='or local-dir:DIR, hf-hub:OWNER/NAME')
    for field, text in FIELDS.items():
        default = getattr(Options, field)
        parser.add_argument(f'--{field.replace("_", "-")}', default=default, metavar=field.upper(), help=text)
    parser.add_argument('--num-samples', type=int, default=0, help='images of a wds/ folder without _info.json')
    parser.add_argument('--img-size', type=int, default=0, metavar='N', help="default: the model's own")
    parser.add_argument('--crop-pct', type=float, default=0.0, metavar='X', help="default: the model's own")
    parser.add_argument('--test-size', action='store_true', help="take the test size of timm's tags that have one")
    parser.add_argument('--batch-size', type=int, default=128, metavar='N', help='default: 128')
    parser.add_argument('--workers', type=int, default=4, metavar='N', help='processes that read images; default: 4')
    parser.add_argument('--device', default='cpu', help='default: cpu')
    parser.add_argument('--dtype', default='float32', choices=DTYPES, help='others by AMP; default: float32')
    parser.add_argument(
        '--output', type=path, default=Path('results/validation'), metavar='DIR', help='default: results/validation'
    )
    parser.add_argument('--resume', action='store_true', help='go on with an interrupted run; keep finished results')
    args = vars(parser.parse_args(argv))
    output, resume, models = args.pop('output'), args.pop('resume'), args.pop('model')
    try:
        if args['checkpoint'] and len(models) > 1:
            raise ValueError('--checkpoint goes with one model')
        args['device'] = str(check_device(args['device']))
        for model in models:
            result = validate(Options(model=model, **args), output, resume)
            print(
                f'{result["model"]}: top-1 {result["top1"]:.2f}, top-5 {result["top5"]:.2f} on {result["images"]} '
                f'images at {result["img_size"]}, {result["images_per_second"]:.0f} images/s',
                flush=True,
            )
    except KeyboardInterrupt:
        print('interrupted; --resume goes on', file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f'validate: {error}', file=sys.stderr)
        return 2
    print(f'all results: {output / "results.csv"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
