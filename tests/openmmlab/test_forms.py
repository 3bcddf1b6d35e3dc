"""The forms in which detectors and segmenters use models of one resolution, and the authors' files for them."""

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).resolve().parents[2]
VIM = {'model_name': 'test_vim', 'img_size': 96, 'class_token': False, 'out_indices': (0, 1, 2, 3)}
LBVIM = {'model_name': 'test_lbvim', 'img_size': 96, 'features': 'mixer'}
SEGMENTERS = {
    'vim_mixer': ({**VIM, 'features': 'mixer'}, {'type': 'visionssm.ResamplePyramid', 'in_channels': 64}, 64),
    'vim_stream': ({**VIM, 'rotary': True}, {'type': 'visionssm.ResamplePyramid', 'in_channels': 64}, 64),
    'plainmamba': ({'model_name': 'test_plainmamba', 'out_norm': True}, None, 64),
    'lbvim': ({**LBVIM, 'norm_layer': 'layernorm', 'out_norm': True, 'out_channels': 32}, None, 32),
}
DETECTORS = {
    'vim': ({**VIM, 'rotary': True, 'out_indices': (3,)}, [64]),
    'lbvim': ({**LBVIM, 'out_norm': True, 'out_indices': (3,)}, [128]),
    'plainmamba': ({'model_name': 'test_plainmamba', 'adapter': {'num_heads': 4, 'groups': 2}}, [64] * 4),
}
SIZES = [(70, 107), (96, 64)]


@pytest.mark.parametrize('size', SIZES, ids='{0[0]}x{0[1]}'.format)
@pytest.mark.parametrize('name', SEGMENTERS)
def test_segmenters_take_any_size(name, size):
    init_default_scope('mmseg')
    import mmseg.models  # noqa: F401

    backbone, neck, channels = SEGMENTERS[name]
    head = {'type': 'UPerHead', 'in_channels': [channels] * 4, 'in_index': [0, 1, 2, 3], 'channels': 8}
    norm = {'type': 'BN'}
    net = MODELS.build(
        {
            'type': 'mmseg.EncoderDecoder',
            'backbone': {'type': 'visionssm.Backbone', **backbone},
            **({'neck': neck} if neck else {}),
            'decode_head': {**head, 'num_classes': 3, 'norm_cfg': norm},
            'test_cfg': {'mode': 'whole'},
        }
    ).eval()
    with torch.no_grad():
        out = net(torch.randn(1, 3, *size))
    side = 4 if neck else 16
    cells = tuple(-(-n // 16) * (16 // side) for n in size)
    assert tuple(out.shape) == (1, 3, *cells) and out.isfinite().all()


@pytest.mark.parametrize('size', SIZES, ids='{0[0]}x{0[1]}'.format)
@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_take_any_size(name, size):
    init_default_scope('mmdet')
    import mmdet.models  # noqa: F401

    backbone, channels = DETECTORS[name]
    if len(channels) == 1:
        neck = {'type': 'visionssm.SimplePyramid', 'in_channels': channels[0], 'out_channels': 16}
    else:
        neck = {'type': 'FPN', 'in_channels': channels, 'out_channels': 16, 'num_outs': 5}
    config = Config.fromfile(ROOT / 'configs/mmdet/plainmamba/retinanet_plainmamba-l1_fpn_1x_coco.py')
    head = {**config.model.bbox_head, 'in_channels': 16, 'feat_channels': 16, 'num_classes': 3}
    net = MODELS.build(
        {
            'type': 'mmdet.RetinaNet',
            'backbone': {'type': 'visionssm.Backbone', **backbone},
            'neck': neck,
            'bbox_head': head,
        }
    ).eval()
    with torch.no_grad():
        scores, boxes = net(torch.randn(1, 3, *size))
    assert len(scores) == 5 and all(x.isfinite().all() for x in (*scores, *boxes))


FROM_CLASSIFIER = {
    'vim': (VIM, {'img_size': 96}, set()),
    'lbvim': (SEGMENTERS['lbvim'][0], {'img_size': 96}, {'outnorm', 'outproj'}),
    'plainmamba': (SEGMENTERS['plainmamba'][0], {}, {'outnorm'}),
    'plainmamba_adapter': (DETECTORS['plainmamba'][0], {}, {'prior', 'interactions', 'norms', 'up', 'level_embed'}),
}


@pytest.mark.parametrize('name', FROM_CLASSIFIER)
def test_classifiers_load(name, tmp_path):
    """What a form adds stays as it was; PlainMamba's final norm is that of the last block's map."""
    args, classifier_args, new = FROM_CLASSIFIER[name]
    source = timm.create_model(args['model_name'], **classifier_args)
    state = {key: torch.rand_like(x) if x.is_floating_point() else x for key, x in source.state_dict().items()}
    torch.save(state, tmp_path / 'classifier.pth')
    init = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'classifier.pth')}
    net = MODELS.build({'type': 'visionssm.Backbone', **args, 'init_cfg': init})
    before = {key: x.clone() for key, x in net.state_dict().items() if x.is_floating_point()}
    net.init_weights()
    kept = {key for key, x in net.state_dict().items() if key in before and torch.equal(x, before[key])}
    assert {re.match(r'(model\.)?(out[a-z]+|\w+)', key)[2] for key in kept if 'bias' not in key} == new
    if name == 'plainmamba':
        assert torch.equal(net.outnorm3.weight, state['norm.weight'])


def load_golden():
    spec = importlib.util.spec_from_file_location('golden', ROOT / 'tests' / 'goldens' / 'golden.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = load_golden()
# our configuration, the fixture with the upstream backbone's names
PUBLISHED = [
    ('mmdet/vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco', 'vmamba_tiny_s1l8'),
    ('mmseg/vmamba/upernet_vmamba-vanilla-tiny_160k_ade20k-512x512', 'vmamba_vanilla_tiny'),
    ('mmseg/msvmamba/upernet_msvmamba-nano_160k_ade20k-512x512', 'msvmamba_nano'),
    ('mmdet/plainmamba/mask-rcnn_plainmamba-l1_fpn_1x_coco', 'plainmamba_l1_adapter'),
    ('mmdet/plainmamba/retinanet_plainmamba-l1_fpn_1x_coco', 'plainmamba_l1_adapter'),
    ('mmseg/plainmamba/upernet_plainmamba-l1_160k_ade20k-512x512', 'plainmamba_l1_seg'),
    ('mmseg/lbvim/upernet_lbvim-tiny_160k_ade20k-512x512', 'lbvim_tiny_seg'),
]


@pytest.mark.parametrize(('config', 'fixture'), PUBLISHED)
def test_the_authors_detectors_load(config, fixture):
    """Strictly: every weight of the file has its place and no place is left; heads are named as ever in OpenMMLab."""
    library = config.partition('/')[0]
    init_default_scope(library)
    __import__(f'{library}.models')
    settings = Config.fromfile(ROOT / 'configs' / f'{config}.py')
    settings.model.backbone.pop('init_cfg', None)
    with torch.device('meta'):
        net = MODELS.build(settings.model)
    meta, _ = golden.load(fixture, ROOT / 'tests' / 'goldens')
    entries = [*meta['state_dict'], *meta.get('backbone_extra_state', [])]
    theirs = {f'backbone.{name}': torch.empty(shape, device='meta') for name, shape, _ in entries}
    classifier = ('backbone.classifier.', 'backbone.head.', 'backbone.norm.')
    heads = {name: x for name, x in net.state_dict().items() if not name.startswith('backbone.')}
    net.load_state_dict({**heads, **{name: x for name, x in theirs.items() if not name.startswith(classifier)}})
    assert_heads(heads)


def assert_heads(heads):
    """The names that mmdet 2 and mmseg 0 gave the same heads."""
    expected = {
        'rpn_head': ['rpn_conv.weight', 'rpn_cls.weight', 'rpn_reg.bias'],
        'roi_head': [
            'bbox_head.fc_cls.weight',
            'bbox_head.fc_reg.weight',
            'bbox_head.shared_fcs.0.weight',
            'mask_head.convs.3.conv.weight',
            'mask_head.upsample.weight',
            'mask_head.conv_logits.weight',
        ],
        'bbox_head': ['cls_convs.3.conv.weight', 'reg_convs.0.conv.weight', 'retina_cls.weight', 'retina_reg.bias'],
        'decode_head': [
            'conv_seg.weight',
            'psp_modules.3.1.conv.weight',
            'psp_modules.0.1.bn.running_mean',
            'bottleneck.conv.weight',
            'lateral_convs.0.conv.weight',
            'fpn_convs.2.bn.weight',
            'fpn_bottleneck.bn.bias',
        ],
        'auxiliary_head': ['convs.0.conv.weight', 'convs.0.bn.weight', 'conv_seg.bias'],
        'neck': ['lateral_convs.2.conv.weight', 'fpn_convs.3.conv.weight'],
    }
    for part in {name.partition('.')[0] for name in heads}:
        assert not [name for name in expected[part] if f'{part}.{name}' not in heads], part
