"""The authors' files of every family: their names and shapes, in the containers that they come in."""

import argparse
import importlib.util
import logging
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import visionssm  # noqa: F401  registers the models
from visionssm.models import load_checkpoint
from visionssm.weights.checkpoint import same_layout

ROOT = Path(__file__).resolve().parents[2]


class CfgNode(dict):
    """As yacs has it: VMamba and MSVMamba store their configuration."""

    __module__ = 'yacs.config'
    __qualname__ = 'CfgNode'


class HistoryBuffer:
    """As mmengine has it: its methods are in the pickle, by name."""

    __module__ = 'mmengine.logging.history_buffer'
    __qualname__ = 'HistoryBuffer'

    def mean(self):
        return 0

    mean.__module__, mean.__qualname__ = __module__, 'HistoryBuffer.mean'

    def __init__(self):
        self.values, self.methods = np.arange(3.0), {'mean': HistoryBuffer.mean}


@pytest.fixture
def save(monkeypatch, tmp_path):
    """Save with classes that are gone when the file is read."""

    def save(content):
        with monkeypatch.context() as patch:
            for cls in (CfgNode, HistoryBuffer):
                for i, _ in enumerate(parts := cls.__module__.split('.'), 1):
                    patch.setitem(sys.modules, '.'.join(parts[:i]), types.ModuleType('.'.join(parts[:i])))
                setattr(sys.modules[cls.__module__], cls.__name__, cls)
            torch.save(content, tmp_path / 'w.pth')
        return tmp_path / 'w.pth'

    return save


def golden_state(fixture, start=0.0):
    """The entries of an upstream checkpoint, each filled with a number of its own, and of no size in a file."""
    spec = importlib.util.spec_from_file_location('golden', ROOT / 'tests' / 'goldens' / 'golden.py')
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    meta, _ = golden.load(fixture, ROOT / 'tests' / 'goldens')
    return OrderedDict(
        (name, torch.tensor(start + i, dtype=getattr(torch, dtype)).expand(shape))
        for i, (name, shape, dtype) in enumerate(meta['state_dict'])
    )


def load(file, name, **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={'file': str(file)}, **kwargs)


def numbers(model):
    """The number that every entry was filled with; BatchNorm counters aside, which count."""
    return {name: x.flatten()[0].item() for name, x in model.state_dict().items() if x.numel() and x.min() == x.max()}


def deit(state, average):  # Vim and its kin
    args = argparse.Namespace(lr=1e-3, model='vim', output_dir='out')
    extra = {'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]}, 'lr_scheduler': {}, 'epoch': 299, 'scaler': {}}
    return {'model': state, 'model_ema': average, 'args': args, **extra}


def swin(state, average):  # VMamba, MSVMamba
    config = CfgNode(MODEL=CfgNode(TYPE='vssm', NAME='x'), TAG='y')
    config.__dict__['__immutable__'] = True
    best = {'max_accuracy': np.float64(82.6), 'max_accuray_ema': 82.5, 'epoch': 264}
    return {'model': state, 'model_ema': average, 'config': config, 'optimizer': {}, 'scaler': {}, **best}


def mmcv(state, average):  # PlainMamba
    buffers = {'ema_' + name.replace('.', '_'): x for name, x in average.items()}
    return {'meta': {'epoch': 300, 'hook_msgs': {}, 'CLASSES': ('a',)}, 'state_dict': {**state, **buffers}}


def timm_trainer(state, average):  # A2Mamba
    return {'epoch': 299, 'arch': 'a2mamba_n', 'state_dict': state, 'args': argparse.Namespace(x=1), 'version': 2}


def flat(state, average):  # GroupMamba
    return state


@pytest.mark.parametrize(
    ('fixture', 'name', 'container', 'averaged'),
    [
        ('vim_tiny', 'vim_tiny_patch16_224', deit, False),
        ('vim_tiny_stride8', 'vim_tiny_patch16_stride8_224', deit, False),
        ('vmamba_tiny_s1l8', 'vmamba_tiny_s1l8', swin, False),
        ('vmamba_tiny_s2l5', 'vmamba_tiny_s2l5', swin, False),
        ('vmamba_vanilla_tiny', 'vmamba_vanilla_tiny', swin, False),
        ('vmamba_tiny_m2', 'vmamba_tiny_m2', swin, False),
        ('msvmamba_nano', 'msvmamba_nano', swin, False),
        ('msvmambav3_tiny', 'msvmambav3_tiny', swin, True),
        ('groupmamba_tiny', 'groupmamba_tiny', flat, False),
        ('plainmamba_l1', 'plainmamba_l1', mmcv, False),
        ('lbvim_tiny', 'lbvim_tiny_patch16_224', deit, False),
        ('lbvim_528_atthead', 'lbvim_528_patch16_224', deit, False),
        ('mambareg_tiny', 'mambareg_tiny_patch16_224', deit, False),
        ('videomamba_tiny', 'videomamba_tiny_patch16_224', deit, False),
        ('localvim_tiny', 'localvim_tiny_patch16_224', timm_trainer, False),
        ('shufflemamba_tiny', 'shufflemamba_tiny_patch16_224', deit, False),
        ('a2mamba_nano', 'a2mamba_nano', timm_trainer, False),
        ('mambavision_t', 'mambavision_tiny', timm_trainer, False),
    ],
)
def test_family(fixture, name, container, averaged, save):
    """The weights that upstream evaluates are those that load: one entry of ours for each of theirs."""
    state, average = golden_state(fixture), golden_state(fixture, 0.25)
    found = numbers(load(save(container(state, average)), name))
    values = list(found.values())
    assert len(found) > 50 and len(set(values)) == len(values)
    fractions = {value % 1 for value in values}
    assert fractions == {0.25 if averaged else 0.0}
    wrapped = OrderedDict((f'module._orig_mod.{key}', x) for key, x in (average if averaged else state).items())
    assert numbers(load(save(wrapped), name)) == found


@pytest.mark.parametrize('name', ['vmamba_tiny_s1l8', 'msvmamba_nano'])
@pytest.mark.parametrize('kwargs', [{'features_only': True}, {'num_classes': 0}], ids=['features', 'headless'])
def test_detector(name, kwargs, save, caplog):
    """The backbone of a whole detector, as mmengine saves it; what is left out is said."""
    state = {f'backbone.{key}': x for key, x in golden_state(name).items() if not key.startswith('classifier')}
    whole = {
        **state,
        **{f'backbone.outnorm{i}.weight': torch.ones(96) for i in range(4)},
        'neck.fpn_convs.0.conv.weight': torch.ones(1),
        'rpn_head.rpn_conv.weight': torch.ones(1),
        'roi_head.bbox_head.fc_cls.weight': torch.ones(1),
    }
    hub = {'log_scalars': OrderedDict(loss=HistoryBuffer()), 'runtime_info': OrderedDict(iter=3)}
    file = save({'meta': {'seed': 0}, 'state_dict': whole, 'message_hub': hub, 'optimizer': {}})
    assert b'getattr' in file.read_bytes()
    with caplog.at_level(logging.INFO, 'visionssm'):
        model = load(file, name, **kwargs)
    assert 'neck, roi_head, rpn_head' in caplog.text
    assert 'outnorm0' in caplog.text and 'norm.*' in caplog.text
    values = numbers(model)
    assert len([value for value in values.values() if value >= 2]) > 50


def test_new_classifier_is_named(save, caplog):
    file = save(golden_state('vim_tiny'))
    with caplog.at_level(logging.INFO, 'visionssm'):
        model = load(file, 'vim_tiny_patch16_224', num_classes=5, in_chans=1)
    assert model.head.weight.shape == (5, 192) and model.patch_embed.proj.weight.shape[1] == 1
    state = golden_state('vim_tiny')
    del state['head.weight'], state['head.bias'], state['norm_f.weight']
    with pytest.raises(ValueError, match=r'1 missing: norm\.weight\n  missing as expected: head\.\* \(.*5 classes\)'):
        load(save(state), 'vim_tiny_patch16_224', num_classes=5)


def test_chosen_average(save):
    """Whoever wants the other weights of a file reads them from it."""
    file = save(deit(golden_state('vim_tiny'), golden_state('vim_tiny', 0.25)))
    overlay = {'state_dict': load_checkpoint(file, 'model_ema')}
    model = timm.create_model('vim_tiny_patch16_224', pretrained=True, pretrained_cfg_overlay=overlay)
    assert {value % 1 for value in numbers(model).values()} == {0.25}
    assert 'state_dict' not in model.pretrained_cfg


def test_configuration_stays(save):
    """What a model says of its weights' source is what it was created with."""
    file = save(golden_state('vim_tiny'))
    for kwargs in ({}, {'features_only': True}):
        model = load(file, 'vim_tiny_patch16_224', **kwargs)
        for config in (model.pretrained_cfg, getattr(model, 'model', model).pretrained_cfg):
            assert config['file'] == str(file) and config['hf_hub_id'].startswith('hustvl/')
            assert 'state_dict' not in config


def test_same_layout():
    assert same_layout((6, 4, 1, 1), (6, 4)) and same_layout((4, 38, 96), (152, 96)) and same_layout((1, 1, 8), (8,))
    assert not same_layout((2, 6), (6, 2)) and not same_layout((2, 3, 4), (4, 6)) and not same_layout((4,), (5,))


def test_no_axes_are_swapped(save):
    """As many numbers are not enough."""
    state = golden_state('vmamba_tiny_s2l5')
    key = 'layers.0.blocks.0.op.in_proj.weight'
    state[key] = torch.zeros(state[key].shape[::-1])
    with pytest.raises(ValueError, match=r'of another shape: .*in_proj'):
        load(save(state), 'vmamba_tiny_s2l5')
