"""Every family in mmdet and mmseg; what the nano configs reach on the digit scenes; exact resuming; the tools."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mmdet
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from visionssm.catalog.configs import find_config
from visionssm.data.scenes import CLASSES, make_scenes

ROOT = Path(__file__).resolve().parents[2]
DETECTOR, SEGMENTER = 'mask-rcnn_vmamba-nano_fpn_digits', 'upernet_vmamba-nano_digits'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """A working folder with the data where the configs look for it."""
    folder = tmp_path_factory.mktemp('digits')
    make_scenes(folder / 'data/digit_scenes')
    return folder


def run(tool, *args, cwd):
    command = [sys.executable, ROOT / f'tools/{tool}_mm.py', *args]
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def scalars(folder, pattern='*/vis_data/2*.json'):
    """What the runner logged, in order of runs and iterations."""
    files = sorted(folder.glob(pattern))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTER])
def test_every_family_has_loss_and_gradients(config, family, build, scenes, monkeypatch):
    monkeypatch.chdir(scenes)
    torch.manual_seed(0)
    config = Config.fromfile(find_config(config))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        library = __import__(f'{config.default_scope}.registry', fromlist=['MODELS'])
        __import__(f'{config.default_scope}.utils', fromlist=['_']).register_all_modules(False)
        channels = build(family).channels
        config.model.backbone.model_name = family
        if config.default_scope == 'mmdet':
            config.model.neck.in_channels = channels
        else:
            config.model.decode_head.in_channels = channels
            config.model.auxiliary_head.in_channels = channels[2]
        model = library.MODELS.build(config.model)
        config.train_dataloader.batch_size = 2
        batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_mmsegs_own_inference_and_augmented_testing(scenes, monkeypatch):
    """By `test_pipeline` and `tta_pipeline` of the config; the mean over sizes is a segmentation of the same size."""
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    monkeypatch.chdir(scenes)
    images = sorted(Path('data/digit_scenes/images/validation').iterdir())[:2]
    model = init_model(str(find_config(SEGMENTER)), device='cpu')
    results = inference_model(model, [str(image) for image in images])
    assert [tuple(result.pred_sem_seg.shape[-2:]) for result in results] == [(96, 96)] * 2
    metainfo = model.cfg.test_dataloader.dataset.metainfo
    segment = MMSegInferencer(str(find_config(SEGMENTER)), None, **metainfo, device='cpu')
    assert segment(str(images[0]))['predictions'].shape == (96, 96)
    torch.save({'state_dict': model.state_dict()}, 'segmenter.pth')
    assert 'mIoU' in score_by_their_tool(mmseg, SEGMENTER, 'segmenter.pth', scenes)

    config = Config.fromfile(find_config(SEGMENTER))
    config.model = {**config.tta_model, 'module': config.model}
    with DefaultScope.overwrite_default_scope('mmseg'):
        augmented = MODELS.build(config.model).eval()
        augmented.module.load_state_dict(model.state_dict())
        dataset = DATASETS.build({**config.test_dataloader.dataset, 'pipeline': config.tta_pipeline})
    (merged,) = augmented.test_step(pseudo_collate([dataset[0]]))
    assert tuple(merged.pred_sem_seg.shape[-2:]) == (96, 96)


def test_mmdets_own_inference(scenes, lines, monkeypatch):
    from mmdet.apis import inference_detector, init_detector

    monkeypatch.chdir(scenes)
    image = str(min(Path('data/digit_scenes/images/validation').iterdir()))
    config = str(find_config(DETECTOR))
    model = init_detector(config, device='cpu')
    found = inference_detector(model, image).pred_instances
    assert found.bboxes.shape[1] == 4 and found.masks.shape[1:] == (96, 96)
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': model.dataset_meta}}, 'detector.pth')
    shutil.copy(image, 'street.jpg')
    named = lines('mmdet', 0, config=config)
    assert named['found'].pred_instances.scores.tolist() == pytest.approx(found.scores.tolist(), abs=1e-5)
    (again,) = named['again']['predictions']
    assert again['scores'] == pytest.approx(found.scores.tolist(), abs=1e-5)

    assert 'coco/segm_mAP' in score_by_their_tool(mmdet, DETECTOR, 'detector.pth', scenes)


def score_by_their_tool(library, config, checkpoint, folder):
    """What a library's own `tools/test.py` says of a model on two images; it imports theirs before ours."""
    tool = Path(library.__file__).parent / '.mim/tools/test.py'
    where = folder / f'theirs-{library.__name__}'
    options = ['--work-dir', where, '--cfg-options', 'test_dataloader.dataset.indices=2']
    command = [sys.executable, tool, find_config(config), checkpoint, *options]
    result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return scalars(where, '*/2*.json')[-1]


def test_killed_and_resumed_training_has_the_same_losses(scenes):
    options = [
        '--cfg-options',
        'train_cfg.max_iters=8',
        'train_cfg.val_interval=100',
        'default_hooks.checkpoint.interval=3',
        'default_hooks.logger.interval=1',
        'model.decode_head.dropout_ratio=0',  # mmengine does not store the state of the random numbers
        'model.auxiliary_head.dropout_ratio=0',
        'train_dataloader.batch_size=2',
    ]
    run('train', SEGMENTER, '--work-dir', 'whole', *options, cwd=scenes)
    command = [sys.executable, str(ROOT / 'tools/train_mm.py'), SEGMENTER, '--work-dir', 'killed', *options]
    pointer = scenes / 'killed/last_checkpoint'
    with subprocess.Popen(command, cwd=scenes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while not (pointer.exists() and pointer.read_text()):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
    assert pointer.read_text().endswith('iter_3.pth')
    run('train', SEGMENTER, '--work-dir', 'killed', '--resume', *options, cwd=scenes)
    whole, resumed = (
        {line['step']: line['loss'] for line in scalars(scenes / name) if 'loss' in line}
        for name in ('whole', 'killed')
    )
    assert resumed.keys() >= {4, 5, 6, 7, 8}
    for step in range(4, 9):
        assert resumed[step] == pytest.approx(whole[step], rel=1e-5)


def test_tools_say_what_is_wrong(scenes):
    for tool, args, message in (
        ('train', ['mask-rcnn_vmamba-nano_digit'], f'closest are {DETECTOR}'),
        ('test', [SEGMENTER, 'nowhere.pth'], "checkpoint 'nowhere.pth' is not a file"),
        ('infer', ['nowhere.jpg', SEGMENTER, 'nowhere.pth'], 'nowhere.jpg'),
    ):
        command = [sys.executable, str(ROOT / f'tools/{tool}_mm.py'), *args]
        result = subprocess.run(command, cwd=scenes, capture_output=True, text=True)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_mask_rcnn_finds_the_digits(scenes):
    run('train', DETECTOR, cwd=scenes)
    found = scalars(scenes / f'work_dirs/{DETECTOR}')[-1]
    assert found['coco/bbox_mAP_50'] >= 0.5, found
    assert found['coco/segm_mAP_50'] >= 0.4, found
    check_picture(DETECTOR, scenes)


@pytest.mark.slow
def test_upernet_segments_the_digits(scenes):
    run('train', SEGMENTER, cwd=scenes)
    found = scalars(scenes / f'work_dirs/{SEGMENTER}')[-1]
    assert found['mIoU'] >= 50, found
    checkpoint = (scenes / f'work_dirs/{SEGMENTER}/last_checkpoint').read_text()
    run('test', SEGMENTER, checkpoint, '--work-dir', 'scored', cwd=scenes)
    (scored,) = scenes.glob('scored/*/*.json')
    assert json.loads(scored.read_text())['mIoU'] == found['mIoU']
    check_picture(SEGMENTER, scenes)


def check_picture(config, scenes):
    """The picture of one validation scene is drawn on and names the digits in it, most of them."""
    image = scenes / 'data/digit_scenes/images/validation/00000.jpg'
    checkpoint = (scenes / f'work_dirs/{config}/last_checkpoint').read_text()
    line = run('infer', image, config, checkpoint, '--output', f'{config}.png', cwd=scenes).splitlines()[-1]
    truth = np.asarray(Image.open(scenes / 'data/digit_scenes/annotations/validation/00000.png'))
    digits = {CLASSES[value - 2] for value in np.unique(truth) if value > 1}
    said = set(line.partition(': ')[2].split(', '))
    assert len(digits & said) >= len(digits) / 2, (digits, line)
    with Image.open(scenes / f'{config}.png') as drawn, Image.open(image) as plain:
        assert drawn.size == plain.size and np.asarray(drawn.convert('RGB')).std() > 0
        assert not np.array_equal(np.asarray(drawn.convert('RGB')), np.asarray(plain))
