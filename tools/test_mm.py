"""Score a checkpoint of a detector, segmenter or classifier of OpenMMLab, with mmengine's Runner.

The checkpoint is a file of ours or of the authors, or a name such as `vmamba_tiny_s1l8.mask_rcnn_1x_coco`; it must fit
exactly. `python tools/test_mm.py mask-rcnn_vmamba-nano_fpn_digits work_dirs/.../epoch_12.pth`.
"""

from _mm import load_whole, make_parser, read_config
from mmengine.runner import Runner

from visionssm.weights.locate import locate


def main() -> None:
    """Parse the arguments and score."""
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='file, or the name of published weights')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, as the config's tta_* say")
    args = parser.parse_args()
    try:
        config = read_config(args)
        checkpoint = locate(args.checkpoint)
        if args.tta:
            if 'tta_model' not in config or 'tta_pipeline' not in config:
                raise ValueError(f'--tta: {args.config} has no tta_model and tta_pipeline')
            config.test_dataloader.dataset.pipeline = config.tta_pipeline
            config.model = {**config.tta_model, 'module': config.model}
        config.load_from = None
        runner = Runner.from_cfg(config)
        load_whole(getattr(runner.model, 'module', runner.model), checkpoint)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    runner.test()


if __name__ == '__main__':
    main()
