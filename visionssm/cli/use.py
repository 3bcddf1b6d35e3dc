"""Use a trained model on images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .output import check_parent, positive


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser('classify', help='what is on these images')
    command.add_argument('images', nargs='+', metavar='IMAGE')
    command.add_argument(
        '--model', required=True, metavar='NAME', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME'
    )
    command.add_argument('--checkpoint', metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--topk', type=positive, default=5, metavar='K', help='classes per image; default: 5')
    command.add_argument('--img-size', type=positive, metavar='N', help="default: the model's own")
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.add_argument('--json', action='store_true', help='print JSON')
    command.set_defaults(run=_classify)

    command = commands.add_parser('features', help='what a model sees in images, as numbers in a file')
    command.add_argument('images', nargs='+', metavar='IMAGE', help='files, or folders of them')
    command.add_argument(
        '--model', required=True, metavar='NAME', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME'
    )
    command.add_argument('--checkpoint', metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--output', type=Path, required=True, metavar='FILE', help='.safetensors or .npz')
    command.add_argument('--batch-size', type=positive, default=32, metavar='N', help='default: 32')
    command.add_argument('--workers', type=int, default=0, metavar='N', help='loader processes; default: 0')
    command.add_argument('--img-size', type=positive, metavar='N', help="default: the model's own")
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.set_defaults(run=_features)


def _classify(args: argparse.Namespace) -> int:
    from visionssm.apps.classify import classify, load_classifier
    from visionssm.catalog.machine import check_device

    device = check_device(args.device)
    model = load_classifier(args.model, args.checkpoint, args.img_size)
    # all of them before the first line: an error leaves no half of an answer
    results = list(classify(model, args.images, args.topk, args.img_size, device))
    if args.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return 0
    for result in results:
        print(result['file'])
        for prediction in result['predictions']:
            print(f'  {prediction["probability"]:7.2%}  {prediction["label"]}')
    return 0


def _features(args: argparse.Namespace) -> int:
    from visionssm.apps import features
    from visionssm.apps.classify import load_classifier
    from visionssm.catalog.machine import check_device

    device = check_device(args.device)
    features.check_suffix(args.output)
    check_parent(args.output)
    files = features.image_files(args.images)
    model = load_classifier(args.model, args.checkpoint, args.img_size)
    batches = features.extract(model, files, args.img_size, device, args.batch_size, args.workers)
    with features.progress(batches, len(files), sys.stderr.isatty()) as shown:
        features.write_features(args.output, shown, [str(file) for file in files], {'model': args.model})
    print(f'wrote {args.output}: features of {len(files)} image{"s" if len(files) > 1 else ""}')
    return 0
