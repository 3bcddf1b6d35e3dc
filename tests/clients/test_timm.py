"""What timm's scripts call of timm, in their order, on models that it knows by `import visionssm` alone."""

from contextlib import redirect_stdout
from io import StringIO

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_input_data_config
from timm.layers import set_fast_norm
from timm.models import load_checkpoint, resolve_model_input_args, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import CheckpointSaver, accuracy, reparameterize_model
from timm.utils.onnx import onnx_export

import visionssm  # noqa: F401

NAMES = ['test_vmamba', 'test_vim', 'test_groupmamba', 'test_mobilemamba']


@pytest.fixture(scope='module')
def loaders(tmp_path_factory):
    """A function that gives the batches of a folder of two classes, as a model takes them."""
    root = tmp_path_factory.mktemp('images')
    for split in ('train', 'validation'):
        for label, colour in (('a', (200, 30, 30)), ('b', (30, 30, 200))):
            (root / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new('RGB', (80, 70), colour).save(root / split / label / f'{i}.png')

    def load(model, split):
        config = resolve_input_data_config(model, {})
        dataset = create_dataset('', root=str(root), split=split, is_training=split == 'train')
        return create_loader(
            dataset,
            config['input_size'],
            batch_size=4,
            is_training=split == 'train',
            num_workers=0,
            device=torch.device('cpu'),
            interpolation=config['interpolation'],
            mean=config['mean'],
            std=config['std'],
        )

    return load


def create(name, **kwargs):
    return timm.create_model(**resolve_model_input_args(name, {}, num_classes=2, **kwargs))


@pytest.mark.parametrize('name', NAMES)
def test_train_resume_and_validate(name, loaders, tmp_path):
    """`train.py` with averaged weights, layer decay and gradient checkpoints; `validate.py` on what it wrote."""
    torch.manual_seed(0)
    model = create(name, drop_path_rate=0.1)
    model.set_grad_checkpointing()
    task = ClassificationTask(model, verbose=False)
    task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(model, 'adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    scheduler, epochs = create_scheduler_v2(optimizer, 'cosine', num_epochs=2)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    for images, labels in loaders(model, 'train'):
        task(images, labels)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()
    scheduler.step(1)
    assert epochs >= 2 and not all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    saver = CheckpointSaver(model, optimizer, task=task, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    path = str(tmp_path / 'last.pth.tar')

    resumed = create(name)
    again = create_optimizer_v2(resumed, 'adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    assert resume_checkpoint(resumed, path, again, log_info=False) == 1
    assert all(torch.equal(x, resumed.state_dict()[key]) for key, x in model.state_dict().items())
    assert [len(group['params']) for group in again.param_groups] == [len(g['params']) for g in optimizer.param_groups]

    averaged = create(name)
    load_checkpoint(averaged, path, use_ema=True)
    averaged = reparameterize_model(averaged.eval())
    expected = task.get_eval_model(ema=True).eval()
    with torch.inference_mode():
        for images, labels in loaders(averaged, 'validation'):
            logits = averaged(images)
            torch.testing.assert_close(logits, expected(images), rtol=1e-4, atol=1e-5)
            assert 0 <= accuracy(logits, labels)[0] <= 100


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_options_of_inference_and_benchmark(loaders):
    """`--torchscript`, `--torchcompile`, `--fast-norm`, `--channels-last`, `--amp`, `--model-dtype`."""
    torch.manual_seed(0)
    model = create('test_vmamba', scriptable=True).eval()
    images = next(iter(loaders(model, 'validation')))[0]
    with torch.inference_mode():
        expected = model(images)
        for other in (
            torch.jit.script(model),
            torch.compile(model, backend='eager'),
            model.to(memory_format=torch.channels_last),
        ):
            torch.testing.assert_close(other(images), expected, rtol=1e-4, atol=1e-5)
        set_fast_norm(True)
        try:
            fast = create('test_vmamba').eval()
        finally:
            set_fast_norm(False)
        fast.load_state_dict(model.state_dict())
        with torch.autocast('cpu', torch.bfloat16):
            half = fast(images)
        assert (half - expected).abs().max() < 0.2 * expected.abs().max()
        other = model.to(torch.bfloat16)(images.bfloat16())
        assert (other - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx_export(dynamo, tmp_path):
    """`onnx_export.py --check-forward`, which compares the file with the model itself."""
    torch.manual_seed(0)
    model = create('test_vmamba', exportable=True, depths=(1, 1, 1, 1))
    with redirect_stdout(StringIO()):
        onnx_export(
            model,
            str(tmp_path / 'model.onnx'),
            check_forward=True,
            batch_size=1,
            dynamic_size=not dynamo,
            input_size=(3, 64, 64),
            use_dynamo=dynamo,
        )
    assert (tmp_path / 'model.onnx').stat().st_size > 1000
