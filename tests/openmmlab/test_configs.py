"""Every config builds what its header and metafile say, which are current; every base trains."""

import sys
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

from visionssm.catalog.configs import find_config
from visionssm.catalog.models import list_rows
from visionssm.weights.published import FAMILIES, published_files

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tools'))
import make_configs  # noqa: E402

CONFIGS = make_configs.configs()
METAFILES = [ROOT / name for name in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
ENTRIES = {entry['Name']: entry for file in METAFILES for entry in yaml.safe_load(file.read_text())['Models']}
WEIGHTS = {row['model']: row['weights'] for row in list_rows()}
WEIGHTS |= {file.name: 'by hand' if file.by_hand else 'yes' for file in published_files(task='classification')}
LIBRARIES = {'mmdet': mmdet, 'mmseg': mmseg}


@pytest.fixture(autouse=True, scope='module')
def registered():
    for library in LIBRARIES.values():
        library.utils.register_all_modules(init_default_scope=False)


def first_reader(settings):
    """What takes the maps of the backbone: a neck, the first of several, or a head."""
    neck = settings.get('neck')
    return neck[0] if isinstance(neck, list) else neck or settings.decode_head


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds_what_header_and_metafile_say(path):
    model = make_configs.build(path)
    entry = make_configs.describe(path, model)
    assert entry == ENTRIES[path.stem]
    assert make_configs.header(path, entry) == path.read_text()
    checkpoint = model.backbone.init_cfg['checkpoint']
    assert checkpoint.partition('.')[0] == model.backbone.model_name and WEIGHTS[checkpoint] in ('yes', 'by hand')
    assert 'test_pipeline' in model.cfg and ('tta_pipeline' in model.cfg or path.parts[-3] == 'mmdet')
    reader = first_reader(model.cfg.model)
    wanted, channels = reader.in_channels, model.backbone.channels
    if 'in_index' in reader and isinstance(wanted, int):
        assert channels[reader.in_index] == wanted
    else:
        assert channels == ([wanted] * len(channels) if isinstance(wanted, int) else wanted)


def test_metafiles_and_index_are_current():
    """What they hold of a config, the test above has seen."""
    folders = dict.fromkeys(path.parent for path in CONFIGS)
    assert make_configs.index(folders) == (ROOT / 'model-index.yml').read_text()
    for folder in folders:
        entries = [ENTRIES[path.stem] for path in CONFIGS if path.parent == folder]
        assert make_configs.metafile(folder, entries) == (folder / 'metafile.yml').read_text()
        assert all(ROOT / entry['Config'] == find_config(entry['Name']) for entry in entries)


def test_whatever_is_reported_is_quoted():
    quoted = {make_configs.weights_name(name, entry['Metadata']['Architecture'][0]) for name, entry in ENTRIES.items()}
    reported = {file.name for file in published_files() if file.method}
    reported |= {name for family in FAMILIES.values() for name in family.unpublished}
    # the same figures but for 0.2 mask AP, from another batch size
    assert reported - quoted == {'vmamba_base_s2l15.mask_rcnn_1x_bs8_coco'}


def test_a_header_of_another_form_is_named(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text('"""No result."""\n')
    with pytest.raises(ValueError, match='config.py: the first line is not a docstring of the form'):
        make_configs.header(file, {})


BLOCKS = {'out_indices': (0, 1, 2, 3)}


@pytest.mark.parametrize(
    'base, model, args',
    [  # those that differ in more than the backbone from what test_training.py trains
        ('mmdet/_base_/cascade-mask-rcnn_ms-crop-3x', 'test_vmamba', {}),
        ('mmdet/plainmamba/_base_/mask-rcnn_1x', 'test_plainmamba', {'adapter': {'num_heads': 4}}),
        ('mmdet/plainmamba/_base_/retinanet_1x', 'test_plainmamba', {'adapter': {'num_heads': 4}}),
        ('mmdet/vim/_base_/vitdet_lsj-100e', 'test_vim', {'out_indices': (3,)}),
        ('mmdet/lbvim/_base_/mask-rcnn_1x', 'test_lbvim', {'out_indices': (3,)}),
        ('mmdet/mambavision/_base_/cascade-mask-rcnn_ms-crop-3x', 'test_mambavision', {'windows': (28, 14)}),
        ('mmdet/mobilemamba/_base_/mask-rcnn_1x', 'test_mobilemamba', {}),
        ('mmdet/mobilemamba/_base_/retinanet_1x', 'test_mobilemamba', {}),
        ('mmseg/mobilemamba/_base_/fpn_160k', 'test_mobilemamba', {}),
        ('mmseg/mobilemamba/_base_/deeplabv3_80k', 'test_mobilemamba', {}),
        ('mmseg/mobilemamba/_base_/pspnet_80k', 'test_mobilemamba', {}),
        ('mmseg/vcmamba/_base_/fpn_40k', 'test_vcmamba', {'img_size': 64}),
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
        neck = first_reader(settings)
        neck.in_channels = channels if neck.type == 'FPN' else channels[-1]
        for stage in np.atleast_1d(settings.train_cfg.get('rcnn', [])):
            stage.sampler.num = 8
        settings.data_preprocessor.pop('batch_augments', None)  # to 1024
        batch = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80, with_mask='roi_head' in settings)
    else:
        if 'neck' in settings:
            settings.neck.in_channels = channels if settings.neck.type == 'FPN' else channels[-1]
        for name in ('decode_head', 'auxiliary_head'):
            if name in settings:
                head = settings[name]
                taken = head.in_index
                if first_reader(settings).get('type') != 'FPN':
                    head.in_channels = [channels[i] for i in taken] if isinstance(taken, list) else channels[taken]
                head.channels = 16
        settings.data_preprocessor.size = (64, 64)  # that of the images, which would be padded to 512
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
