"""Run a detector or segmenter of OpenMMLab on an image and draw boxes, masks or the segmentation.

For example: `python tools/infer_mm.py photo.jpg upernet_vmamba-nano_digits work_dirs/.../iter_800.pth`.
"""

import argparse

import numpy as np
import torch
from _mm import load_whole
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from PIL import Image

from visionssm.catalog.configs import find_config
from visionssm.weights.locate import locate


def main() -> None:
    """Parse the arguments, run and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='file')
    parser.add_argument('config', help='file, or the name of one of our configs')
    parser.add_argument('checkpoint', help='file, or the name of published weights')
    parser.add_argument('--output', default='result.png', help='picture (default result.png)')
    parser.add_argument('--threshold', type=float, default=0.3, help='least score of boxes (default 0.3)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    try:
        print(infer(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def infer(args: argparse.Namespace) -> str:
    """Draw the result into `args.output`.

    Returns:
        One line that says what was found, and where the picture is.

    Raises:
        OSError: If the image or a file of weights can't be read.
        ValueError: If the config is unknown, or the weights do not fit.
    """
    with Image.open(args.image) as image:
        pixels = np.asarray(image.convert('RGB'))
    checkpoint = locate(args.checkpoint)
    config = Config.fromfile(find_config(args.config))
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    load_whole(model, checkpoint)
    model.to(args.device).eval()

    dataset = config.test_dataloader.dataset
    steps = [step for step in dataset.pipeline if 'Annotations' not in step['type']]
    with torch.inference_mode():
        sample = model.test_step(pseudo_collate([Compose(steps)({'img_path': args.image, 'img_id': 0})]))[0].cpu()

    visualizer = VISUALIZERS.build({**config.visualizer, 'vis_backends': None, 'name': 'infer'})
    with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
        visualizer.dataset_meta = {**registry.get(dataset.type).METAINFO, **dataset.get('metainfo', {})}
    names = visualizer.dataset_meta['classes']
    drawing = {'data_sample': sample, 'draw_gt': False, 'out_file': args.output}
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found = found[found.scores >= args.threshold]
        visualizer.add_datasample('image', pixels, pred_score_thr=args.threshold, **drawing)
        labels = found.labels.tolist()
    else:
        visualizer.add_datasample('image', pixels, **drawing)
        labels = sample.pred_sem_seg.data.unique().tolist()
    return f'{args.output}: {", ".join(names[i] for i in labels) or "nothing"}'


if __name__ == '__main__':
    main()
