"""Every config builds what it says; metafiles, headers and the list of published weights agree; every base trains."""

import re
from functools import cache
from pathlib import Path

import mmdet.registry
import mmdet.utils
import mmseg.registry
import mmseg.utils
import numpy as np
import pytest
import torch
import yaml
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from visionssm.catalog.configs import find_config, list_configs
from visionssm.catalog.models import list_rows
from visionssm.weights.downstream import DOWNSTREAM

ROOT = Path(__file__).resolve().parents[2]
METAFILES = [ROOT / name for name in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
ENTRIES = {entry['Name']: entry for file in METAFILES for entry in yaml.safe_load(file.read_text())['Models']}
# trained here as an end to the means, without a paper behind them
CONFIGS = [path for path in list_configs() if path.suffix == '.py' and path.parent.name != 'digits']
WEIGHTS = {row['model']: row['weights'] for row in list_rows()}
LIBRARIES = {'mmdet': mmdet, 'mmseg': mmseg}
METHODS = {
    r'mask-rcnn_.*_1x_coco': 'mask_rcnn_1x_coco',
    r'mask-rcnn_.*-3x_coco': 'mask_rcnn_3x_coco',
    r'retinanet_.*_1x_coco': 'retinanet_1x_coco',
    r'upernet_.*_160k_ade20k-512x512': 'upernet_160k_ade20k',
}


@pytest.fixture(autouse=True, scope='module')
def registered():
    for library in LIBRARIES.values():
        library.utils.register_all_modules(init_default_scope=False)


@cache
def config(name):
    return Config.fromfile(find_config(name))


def build(name, device):
    model = config(name).model.copy()
    scope = config(name).default_scope
    with torch.device(device), DefaultScope.overwrite_default_scope(scope):
        return LIBRARIES[scope].registry.MODELS.build(model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds_what_the_metafile_says(path):
    model = build(path.stem, 'meta')
    entry = ENTRIES[path.stem]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == entry['Metadata']['Parameters (M)']
    assert model.backbone.model_name == entry['Metadata']['Architecture'][0]
    assert model.backbone.init_cfg['checkpoint'].partition('.')[0] == model.backbone.model_name
    reader = config(path.stem).model.get('neck') or config(path.stem).model.decode_head
    wanted = reader.in_channels
    assert model.backbone.channels == ([wanted] * len(model.backbone.channels) if isinstance(wanted, int) else wanted)
    loop = config(path.stem).train_cfg
    length = entry['Metadata'].get('Iterations') or entry['Metadata']['Epochs']
    assert length == loop.get('max_epochs', loop.get('max_iters')) or (length, loop.max_iters) == (100, 184375)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_header_quotes_the_result(path):
    title = path.read_text().split('"""')[1]
    metrics = [item for result in ENTRIES[path.stem].get('Results', []) for item in result['Metrics'].items()]
    said = ', '.join(f'{name} {value}' for name, value in metrics)
    assert title.endswith(f': {said} by the authors.' if said else ': no reported result.')
    assert WEIGHTS[config(path.stem).model.backbone.init_cfg.checkpoint] in ('yes', 'by hand')


def test_metafiles_list_every_config_once():
    assert sorted(ENTRIES) == sorted(path.stem for path in CONFIGS)
    for file in METAFILES:
        content = yaml.safe_load(file.read_text())
        for entry in content['Models']:
            assert ROOT / entry['Config'] == find_config(entry['Name'])
            assert entry['In Collection'] in [collection['Name'] for collection in content['Collections']]


def test_published_detectors_and_segmenters_are_quoted():
    quoted = set()
    for name, entry in ENTRIES.items():
        method = next((method for pattern, method in METHODS.items() if re.fullmatch(pattern, name)), None)
        published = DOWNSTREAM.get(f'{entry["Metadata"]["Architecture"][0]}.{method}')
        if published is not None:
            quoted.add(published.name)
            metrics = {k: v for result in entry['Results'] for k, v in result['Metrics'].items()}
            assert list(metrics.values()) == list(published.metrics.values())
            assert entry.get('Weights', '').endswith(
                (published.url or published.hf_hub_filename or '').rpartition('/')[2]
            )
    # the same figures but for 0.2 mask AP, from another batch size
    assert set(DOWNSTREAM) - quoted == {'vmamba_base_s2l15.mask_rcnn_1x_bs8_coco'}


BLOCKS = {'out_indices': (0, 1, 2, 3)}


@pytest.mark.parametrize(
    'base, model, args',
    [  # those that differ in more than the backbone from what test_training.py trains
        ('mmdet/_base_/cascade-mask-rcnn_ms-crop-3x', 'test_vmamba', {}),
        ('mmdet/plainmamba/_base_/mask-rcnn_1x', 'test_plainmamba', {'adapter': {'num_heads': 4}}),
        ('mmdet/plainmamba/_base_/retinanet_1x', 'test_plainmamba', {'adapter': {'num_heads': 4}}),
        ('mmdet/vim/_base_/vitdet_lsj-100e', 'test_vim', {'out_indices': (3,)}),
        ('mmdet/lbvim/_base_/mask-rcnn_1x', 'test_lbvim', {'out_indices': (3,)}),
        ('mmseg/vim/_base_/upernet_60k', 'test_vim', BLOCKS),
        ('mmseg/lbvim/_base_/upernet_160k', 'test_lbvim', BLOCKS),
        ('mmseg/plainmamba/_base_/upernet_160k', 'test_plainmamba', BLOCKS),
    ],
)
def test_loss_reaches_every_parameter(base, model, args):
    torch.manual_seed(0)
    config = Config.fromfile(ROOT / 'configs' / f'{base}.py')
    settings = config.model
    settings.backbone.update(model_name=model, init_cfg=None, **args)
    channels = MODELS.build(settings.backbone).channels
    library = LIBRARIES[base.partition('/')[0]]
    if library is mmdet:
        settings.neck.in_channels = channels if settings.neck.type == 'FPN' else channels[-1]
        for stage in np.atleast_1d(settings.train_cfg.get('rcnn', [])):
            stage.sampler.num = 8
        settings.data_preprocessor.pop('batch_augments', None)  # to 1024
        batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80, with_mask='roi_head' in settings)
    else:
        if 'neck' in settings:
            settings.neck.in_channels = channels[-1]
        settings.decode_head.update(in_channels=channels, channels=16)
        settings.auxiliary_head.update(in_channels=channels[2], channels=16)
        sample = SegDataSample(metainfo={'img_shape': (64, 64), 'ori_shape': (64, 64)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
        batch = {'inputs': [torch.randint(0, 256, (3, 64, 64)).float()] * 2, 'data_samples': [sample, sample.clone()]}
    with DefaultScope.overwrite_default_scope(library.__name__):
        model = revert_sync_batchnorm(library.registry.MODELS.build(settings))
    loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert bool(unused) == config.get('find_unused_parameters', False), unused
    config.optim_wrapper.type = 'OptimWrapper'  # that for mixed precision wants a GPU
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))
    decays = {group['weight_decay'] for group in optimizer.param_groups}
    assert decays == {0.0, config.optim_wrapper.optimizer.weight_decay}
    for loader in (config.train_dataloader, config.val_dataloader):
        with DefaultScope.overwrite_default_scope(library.__name__):
            Compose(loader.dataset.get('dataset', loader.dataset).pipeline)
