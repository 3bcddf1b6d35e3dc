import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign, batched_nms, nms, roi_align, sigmoid_focal_loss, softmax_focal_loss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

FOLDER = Path(__file__).parent
CASES = json.loads((FOLDER / 'mmcv_ops.json').read_text())['cases']


@pytest.fixture(scope='module')
def recorded():
    with np.load(FOLDER / 'mmcv_ops.npz') as file:
        return {name: torch.from_numpy(x) for name, x in file.items()}


def _of(op):
    return [case for case in CASES if case['op'] == op]


@pytest.mark.parametrize('case', _of('roi_align'), ids=lambda case: str(case['index']))
def test_roi_align_is_compiled_mmcv(recorded, case):
    feat = recorded['feat'].clone().requires_grad_()
    y = roi_align(
        feat,
        recorded['rois'],
        tuple(case['output_size']),
        case['spatial_scale'],
        case['sampling_ratio'],
        case['pool_mode'],
        case['aligned'],
    )
    w = np.random.RandomState(case['index'] + 1).standard_normal(y.shape).astype(np.float32)
    (y * torch.from_numpy(w)).sum().backward()
    torch.testing.assert_close(y, recorded[f'roi_align_{case["index"]}'], rtol=0, atol=1e-6)
    torch.testing.assert_close(feat.grad, recorded[f'roi_align_grad_{case["index"]}'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('case', _of('nms'), ids=lambda case: str(case['index']))
def test_nms_is_compiled_mmcv(recorded, case):
    _, kept = nms(recorded['boxes'], recorded['scores'], case['iou_threshold'], case['offset'])
    assert torch.equal(kept, recorded[f'nms_{case["index"]}'])


def test_batched_nms_is_compiled_mmcv(recorded):
    config = {'type': 'nms', 'iou_threshold': 0.5}
    dets, kept = batched_nms(recorded['boxes'], recorded['scores'], recorded['labels'], config)
    assert torch.equal(kept, recorded['batched_nms_keep'])
    torch.testing.assert_close(dets, recorded['batched_nms_dets'])


def test_roi_align_has_exact_gradients(recorded):
    feat = recorded['feat'][:, :1, :6, :6].double().requires_grad_()
    rois = torch.tensor([[0, 1.0, 2, 15, 20], [1, 3, 0, 22, 9]]).double()
    layer = RoIAlign((2, 3), 0.25, 2)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), feat)


def test_focal_loss_is_what_mmdet_defines():
    target = torch.tensor([0, 2, 3, 1, 3])  # 3 is the background
    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3]
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    pairs = []
    for loss in (
        lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none'),
        lambda x: py_sigmoid_focal_loss(x, one_hot, None, 2.0, 0.25, 'none'),
    ):
        x = logits.clone().requires_grad_()
        y = loss(x)
        y.sum().backward()
        pairs.append((y, x.grad))
    torch.testing.assert_close(*pairs)


def test_other_operators_refuse_by_name():
    with pytest.raises(NotImplementedError, match='softmax_focal_loss_forward is an operator of compiled mmcv'):
        softmax_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match='sigmoid_focal_loss with weights'):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 2.0, 0.25, torch.ones(3))
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), (2, 2), 1.0, 0, 'max')


_ALONE = """
import sys, types, importlib.machinery, importlib.util
{before}
import visionssm.openmmlab.mmcv_ext as ext
"""


def _run(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_steps_aside_for_a_compiled_extension():
    fake = (
        "import mmcv; module = types.ModuleType('mmcv._ext'); "
        "module.__spec__ = importlib.machinery.ModuleSpec('mmcv._ext', None); sys.modules['mmcv._ext'] = module"
    )
    code = _ALONE.format(before=fake) + "assert ext.install() is False and sys.modules['mmcv._ext'] is module"
    result = _run(code)
    assert result.returncode == 0, result.stderr


FIRST = """
from {first}
import sys
print(type(sys.modules['mmcv._ext']).__name__, 'visionssm.openmmlab' in sys.modules)
"""


@pytest.mark.parametrize(
    'first',
    ['mmdet.apis import DetInferencer, init_detector', 'mmseg.apis import MMSegInferencer'],
)
def test_found_by_the_first_import(first):
    result = _run(FIRST.format(first=first))
    assert result.stdout.split()[-2:] == ['_StandIn', 'True'], result.stderr


COMPILED = 'import mmcv._ext; assert mmcv._ext.theirs'
HIDDEN = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'mmcv' else find(name, *args)
"""
TORCH = "import sys; before = list(sys.meta_path); import torch; print(before == sys.meta_path, 'timm' in sys.modules)"


def test_torch_changes_nothing_where_mmcv_is_absent():
    assert _run(HIDDEN + TORCH).stdout.split() == ['True', 'False']


def test_torch_changes_nothing_where_mmcv_is_compiled(tmp_path, monkeypatch):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    (tmp_path / 'mmcv/_ext.py').write_text('theirs = True')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    result = _run(f'{TORCH}; {COMPILED}')
    assert result.stdout.split() == ['True', 'False'] and result.returncode == 0, result.stderr


def test_without_mmcv_says_what_to_install():
    last = _run(_ALONE.format(before=HIDDEN)).stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: ') and 'pip install' in last


def test_runner_checkpoints_load_safely_and_nothing_more(tmp_path):
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({'message_hub': {'log_scalars': {'loss': log}}, 'seed': np.int64(3), 'x': np.float32(1)}, tmp_path / 'a')
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'a'))
    assert found['message_hub']['log_scalars']['loss'].mean() == 1.5 and found['seed'] == 3

    class Evil:
        def __reduce__(self):
            return getattr, (HistoryBuffer, 'register_statistics')

    with pytest.raises(Exception, match='Unsupported global'):  # elsewhere torch's own rules hold
        torch.load(tmp_path / 'a', weights_only=True)
    torch.save(Evil(), tmp_path / 'b')
    with pytest.raises(Exception, match='register_statistics'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'b'))
