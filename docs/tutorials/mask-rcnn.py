# %% [markdown]
# # Mask R-CNN on your own COCO file
#
# mmdet trains detectors on any data set in COCO's format. This tutorial makes a small one, points a config of ours
# to it, trains Mask R-CNN on a CPU in a minute or two, and draws what it finds. `pip install
# ".[openmmlab,tutorials]"` compiles nothing: see [Detection](../detection.md).
#
# The scenes are real photographs (two of scikit-learn's) with images of
# [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) on them (MIT licence,
# [arXiv:1708.07747](https://arxiv.org/abs/1708.07747)).

# %%
import contextlib
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import FashionMNIST

from visionssm.catalog.configs import find_config
from visionssm.data.scenes import make_scene, run_lengths

RUNS = Path('runs/mask-rcnn')
KINDS = {1: 'trouser', 7: 'sneaker', 8: 'bag'}  # by Fashion-MNIST's label

# %% [markdown]
# ## A COCO file
#
# COCO's format is one JSON file: images, categories, and one annotation per object with its box and mask. Training and
# validation share neither an object nor a part of a photograph. If you have such files, skip this part and set
# `DATA` and the names in it.

# %%
DATA = RUNS / 'data'


def write_split(name, count, train, part):
    """`count` scenes as JPEG files, and NAME.json."""
    clothes = FashionMNIST('data', train=train, download=True)
    chosen = torch.isin(clothes.targets, torch.tensor(list(KINDS)))
    items, kinds = (
        clothes.data[chosen].numpy() / 255,
        clothes.targets[chosen].numpy(),
    )
    photos = [
        photo[:, part(photo.shape[1])] for photo in load_sample_images().images
    ]
    folder, rng = DATA / name, np.random.default_rng(train)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        scene, objects = make_scene(rng, 96, items, kinds, photos)
        Image.fromarray(scene).save(folder / f'{number}.jpg')
        images.append(
            {
                'id': number,
                'file_name': f'{number}.jpg',
                'height': 96,
                'width': 96,
            }
        )
        for kind, mask in objects:
            (top, bottom), (left, right) = (
                np.flatnonzero(mask.any(axis))[[0, -1]].tolist()
                for axis in (1, 0)
            )
            box = [left, top, right - left + 1, bottom - top + 1]
            about = {
                'id': len(annotations) + 1,
                'image_id': number,
                'category_id': kind,
                'iscrowd': 0,
            }
            annotations.append(
                about
                | {
                    'bbox': box,
                    'area': int(mask.sum()),
                    'segmentation': run_lengths(mask),
                }
            )
    categories = [{'id': kind, 'name': name} for kind, name in KINDS.items()]
    content = {
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
    (DATA / f'{name}.json').write_text(json.dumps(content, default=int))
    print(f'{name}: {len(images)} images, {len(annotations)} objects')


write_split('train', 300, True, lambda width: slice(0, 3 * width // 4))
write_split('validation', 40, False, lambda width: slice(3 * width // 4, width))

# %% [markdown]
# ## The config
#
# We start from a small one for scenes of this size; `visionssm configs` lists those of all families. What has to change
# for another data set: where it is, and the names of its classes, which come from the file itself.

# %%
config = Config.fromfile(find_config('mask-rcnn_vmamba-nano_fpn_digits'))
classes = tuple(
    entry['name']
    for entry in json.loads((DATA / 'train.json').read_text())['categories']
)
for loader, name in (
    (config.train_dataloader, 'train'),
    (config.val_dataloader, 'validation'),
):
    loader.dataset.update(
        data_root=str(DATA),
        ann_file=f'{name}.json',
        data_prefix={'img': name},
        metainfo={'classes': classes},
    )
config.val_evaluator.ann_file = str(DATA / 'validation.json')
config.test_dataloader, config.test_evaluator = (
    config.val_dataloader,
    config.val_evaluator,
)
for head in ('bbox_head', 'mask_head'):
    config.model.roi_head[head].num_classes = len(classes)

# %% [markdown]
# A short run: three passes over 300 scenes. On a GPU, with COCO's image sizes, start from
# `mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco` and published weights instead, and leave its schedule as it is.

# %%
config.work_dir = str(RUNS / 'work')
config.log_level = 'ERROR'
config.default_hooks.logger.interval = 10
runner = Runner.from_cfg(config)
with contextlib.redirect_stdout(None):  # pycocotools prints much
    runner.train()
log = Path(runner.log_dir) / f'vis_data/{runner.timestamp}.json'
logged = [json.loads(line) for line in log.read_text().splitlines()]
scores = logged[-1]
for kind, key in (('boxes', 'coco/bbox_mAP_50'), ('masks', 'coco/segm_mAP_50')):
    print(f'AP at IoU 0.5 of {kind}: {scores[key]:.2f}')
assert scores['coco/bbox_mAP_50'] >= 0.3 and scores['coco/segm_mAP_50'] >= 0.3

# %% alt="The training loss against the number of updates: it falls from the start to the end"
figure, axis = plt.subplots(figsize=(7, 3), layout='constrained')
steps = [line for line in logged if 'loss' in line]
axis.plot(
    [line['step'] for line in steps],
    [line['loss'] for line in steps],
    color='#0072b2',
    lw=2.5,
)
axis.set_xlabel('update', fontsize=13)
axis.set_ylabel('loss', fontsize=13)
axis.tick_params(labelsize=12)
axis.set_ylim(0)
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Find objects
#
# `init_detector` and `inference_detector` are mmdet's own. Boxes with scores of at least 0.5, masks in the same colour.

# %% alt="Six validation scenes with boxes, names and masks of the objects that were found"
model = init_detector(config, str(RUNS / 'work/epoch_3.pth'), device='cpu')
colours = dict(zip(classes, ('#56b4e9', '#e69f00', '#f0e442'), strict=True))
figure, axes = plt.subplots(2, 3, figsize=(9, 6.2), layout='constrained')
for axis, file in zip(
    axes.flat, sorted((DATA / 'validation').iterdir()), strict=False
):
    found = inference_detector(model, str(file)).pred_instances
    found = found[found.scores >= 0.5]
    picture = np.asarray(Image.open(file)) / 255
    for mask, label in zip(found.masks, found.labels, strict=True):
        colour = np.array(plt.matplotlib.colors.to_rgb(colours[classes[label]]))
        picture[mask] = 0.5 * picture[mask] + 0.5 * colour
    axis.imshow(picture)
    for (left, top, right, bottom), label in zip(
        found.bboxes.tolist(), found.labels, strict=True
    ):
        name = classes[label]
        axis.add_patch(
            plt.Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                color=colours[name],
                lw=2.5,
            )
        )
        axis.text(
            left,
            max(top, 7),
            name,
            fontsize=11,
            color='black',
            backgroundcolor=colours[name],
            va='bottom',
        )
    axis.set(xticks=[], yticks=[], xlim=(0, 95), ylim=(95, 0))
plt.show()

# %% [markdown]
# The same as files and commands: save the changes above as `my.py`, with `_base_` set to the config we started
# from, then
#
# ```sh
# python tools/train_mm.py my.py --work-dir work
# python tools/test_mm.py my.py work/epoch_3.pth
# python tools/infer_mm.py photo.jpg my.py work/epoch_3.pth --output found.png
# ```
