"""Use a trained model on images."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from visionssm.files import check_writable

from .output import filename, path, positive

if TYPE_CHECKING:
    from torch import nn

_METHODS = 'int8-weight, int8-dynamic, mambaquant-w8a8, mambaquant-w4a8'


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands to the parser."""
    command = commands.add_parser('classify', help='what is on these images')
    command.add_argument('images', nargs='+', metavar='IMAGE')
    command.add_argument(
        '--model', required=True, metavar='NAME', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME'
    )
    command.add_argument('--checkpoint', type=filename, metavar='FILE', help="weights in ours or the authors' format")
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
    command.add_argument('--checkpoint', type=filename, metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--output', type=path, required=True, metavar='FILE', help='.safetensors or .npz')
    command.add_argument('--batch-size', type=positive, default=32, metavar='N', help='default: 32')
    command.add_argument('--workers', type=int, default=0, metavar='N', help='loader processes; default: 0')
    command.add_argument('--img-size', type=positive, metavar='N', help="default: the model's own")
    command.add_argument('--device', default='cpu', help='default: cpu')
    command.set_defaults(run=_features)

    command = commands.add_parser('export', help='a model as a file for another runtime, compared before it is written')
    command.add_argument('model', metavar='MODEL', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME')
    command.add_argument('--checkpoint', type=filename, metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--random', action='store_true', help='a new model without trained weights')
    command.add_argument(
        '--format', required=True, metavar='FORMAT', help='onnx, exported-program, aoti, torchscript or openvino'
    )
    command.add_argument('--output', type=path, required=True, metavar='FILE', help='file to write')
    command.add_argument('--img-size', type=positive, metavar='N', help="default: the model's own")
    command.add_argument('--batch', type=positive, default=2, metavar='N', help='of the example, from 2; default: 2')
    command.add_argument('--dynamic-size', action='store_true', help='take images of any size, not of this one alone')
    command.add_argument('--opset', type=positive, metavar='N', help="of ONNX; default: the exporter's own")
    command.add_argument(
        '--operators', metavar='SET', help='exported-program and aoti: plain (default), core (ATen) or ours (faster)'
    )
    command.set_defaults(run=_export)

    command = commands.add_parser('quantize', help='a model with 8-bit or 4-bit weights, as a folder that timm loads')
    command.add_argument('model', metavar='MODEL', help='registered name, local-dir:FOLDER or hf-hub:OWNER/NAME')
    command.add_argument('--checkpoint', type=filename, metavar='FILE', help="weights in ours or the authors' format")
    command.add_argument('--random', action='store_true', help='a new model without trained weights')
    command.add_argument('--method', required=True, metavar='METHOD', help=f'one of {_METHODS}')
    command.add_argument('--calibration', type=path, metavar='DIR', help='training images, for mambaquant-*')
    command.add_argument('--images', type=positive, default=128, metavar='N', help='to take of these; default: 128')
    command.add_argument('--output', type=path, required=True, metavar='DIR', help='folder to write')
    command.add_argument('--img-size', type=positive, metavar='N', help="default: the model's own")
    command.set_defaults(run=_quantize)


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
    check_writable(args.output)
    files = features.image_files(args.images)
    model = load_classifier(args.model, args.checkpoint, args.img_size)
    batches = features.extract(model, files, args.img_size, device, args.batch_size, args.workers)
    with features.progress(batches, len(files), sys.stderr.isatty()) as shown:
        features.write_features(args.output, shown, [str(file) for file in files], {'model': args.model})
    print(f'wrote {args.output}: features of {len(files)} image{"s" if len(files) > 1 else ""}')
    return 0


def asked_model(args: argparse.Namespace, dynamic_size: bool = False) -> nn.Module:
    """The model of a command with `--checkpoint`, `--random` and `--img-size`."""
    from visionssm.apps.classify import load_classifier, load_untrained

    if not args.random:
        return load_classifier(args.model, args.checkpoint, args.img_size, dynamic_size)
    if args.checkpoint is not None:
        raise ValueError('--random and --checkpoint exclude each other')
    return load_untrained(args.model, args.img_size, dynamic_size)


def _export(args: argparse.Namespace) -> int:
    from visionssm.apps import export
    from visionssm.apps.classify import data_config

    export.check_request(args.format, args.output, args.opset, args.operators)
    model = asked_model(args, args.dynamic_size)
    checks = export.export_model(
        model,
        args.output,
        args.format,
        data_config(model, args.img_size)['input_size'],
        args.batch,
        args.dynamic_size,
        args.opset,
        args.operators,
    )
    for check in checks:
        shape = ' x '.join(map(str, check.shape))
        print(f'{shape}: differs by {check.error:.1e} standard deviations; allowed is {export.TOLERANCE:.0e}')
    print(f'wrote {args.output}: {args.output.stat().st_size / 1e6:.1f} MB')
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from visionssm.apps.quantize import quantize

    done = quantize(
        args.model, args.method, args.output, args.calibration, args.checkpoint, args.img_size, args.images, args.random
    )
    for line in done.prepared.notes:
        print(line)
    if peaks := done.prepared.peaks:
        before, after = (sorted(values) for values in ([x.before for x in peaks], [x.after for x in peaks]))
        middle = len(peaks) // 2
        print(
            'largest input over standard deviation, before and after: '
            f'median {before[middle]:.1f} and {after[middle]:.1f}, worst {before[-1]:.1f} and {after[-1]:.1f}'
        )
    size = (args.output / 'model.safetensors').stat().st_size
    plain = 4 * sum(x.numel() for x in done.model.state_dict().values())
    print(f'{done.layers} linear layers quantised, {done.weights:.1%} of the parameters')
    print(f'wrote {args.output}: {size / 1e6:.2f} MB, {plain / size:.2f} times less than in fp32')
    return 0
