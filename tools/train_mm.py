"""Train a detector, segmenter or classifier of OpenMMLab from a config, with mmengine's Runner and nothing else.

python tools/train_mm.py mask-rcnn_vmamba-nano_fpn_digits
torchrun --nproc-per-node 8 tools/train_mm.py mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco --launcher pytorch
"""

from _mm import make_parser, read_config
from mmengine.runner import Runner


def main() -> None:
    """Parse the arguments and train."""
    parser = make_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without one, from the last in the work dir',
    )
    args = parser.parse_args()
    try:
        config = read_config(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.resume:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume
    Runner.from_cfg(config).train()


if __name__ == '__main__':
    main()
