"""Whole runs on digits: every family, kill and resume, full disks, distillation, probing, fine-tuning."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')
pytest.importorskip('tqdm')

from visionssm import cli  # noqa: E402
from visionssm.catalog.models import model_names  # noqa: E402
from visionssm.hub.card import folder_card  # noqa: E402
from visionssm.models.vim import resample_pos_embed  # noqa: E402
from visionssm.train import load_recipe  # noqa: E402
from visionssm.train.checkpoint import read_checkpoint  # noqa: E402
from visionssm.train.log import read_table  # noqa: E402
from visionssm.train.loop import NonFiniteLossError  # noqa: E402
from visionssm.train.model import save_model  # noqa: E402
from visionssm.train.parallel import start_processes  # noqa: E402
from visionssm.train.run import Trainer  # noqa: E402
from visionssm.train.run import train as train_anywhere  # noqa: E402

SMALL = ['epochs=1', 'warmup_epochs=0', 'batch_size=32', 'train_samples=128', 'workers=0', 'hflip=0', 'log_steps=1']
train = partial(train_anywhere, device='cpu')
ISOTROPIC = ['test_vim', 'test_plainmamba', 'test_lbvim']


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """As in the processes that are started here: the order of sums goes by the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(model='test_vmamba', *extra):
    return load_recipe(None, [*SMALL, *extra], model=model, data='digits')


def silent(line):
    pass


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder of a `test_vim` that has learned something."""
    folder = tmp_path_factory.mktemp('trained')
    train(recipe('test_vim', 'val_split=null', 'lr=2e-3'), folder, silent)
    return folder


@pytest.mark.parametrize('name', [name for name in model_names('test_*') if name != 'test_vim'])
def test_every_family_trains_an_epoch(name, tmp_path):
    lines = []
    extra = ['train_samples=64', 'ema=0.9', 'clip_grad=1', 'drop_path=0.1', 'mixup=0.2', 'random_erase=0.1']
    shuffled = ['shuffle_layers=0.9'] if name in ISOTROPIC else []
    (epoch,) = train(recipe(name, *extra, *shuffled), tmp_path, lines.append)
    assert 0 < epoch.loss < 10 and 0 <= epoch.accuracy <= 1
    assert len(lines) == 3 and 'images/s' in lines[1] and 'MiB' in lines[1]
    weights = read_checkpoint(tmp_path / 'checkpoints' / 'best.pt')['model_ema']
    saved = load_file(tmp_path / 'model.safetensors')
    if name != 'test_mambaout':  # timm's own, which older versions of it do not load from a folder
        model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
        assert model.pretrained_cfg['label_names'] == list('0123456789')
        saved = model.state_dict()
    assert saved.keys() == weights.keys() and all(torch.equal(x, weights[key]) for key, x in saved.items())
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        'checkpoints',
        'config.json',
        'model.safetensors',
        'recipe.yaml',
        'run.png',
        'steps.csv',
        'epochs.csv',
    }
    assert load_recipe(tmp_path / 'recipe.yaml') == recipe(name, *extra, *shuffled)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_coatnet'])
def test_any_model_of_timm_trains(name, tmp_path):
    """Also those that do not run on small images: they get images of their own size."""
    (epoch,) = train(recipe(name, 'train_samples=32', 'val_split=null'), tmp_path, silent)
    assert 0 < epoch.loss < 10
    assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True).num_classes == 10


def test_learns(tmp_path):
    history = train(
        recipe('test_vmamba', 'epochs=3', 'batch_size=64', 'train_samples=1024', 'lr=2e-3', 'scale=[0.8, 1]'),
        tmp_path,
        silent,
    )
    assert history[-1].accuracy > 0.85 and history[-1].loss < history[0].loss
    from matplotlib import image

    picture = image.imread(tmp_path / 'run.png')
    assert picture.shape[0] > 600 and picture.shape[1] > 1000 and picture.std() > 0.05


def test_tensorboard_and_a_bar(tmp_path, capfd):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = ['tensorboard=true', 'train_samples=64', 'val_split=null']
    train(recipe('test_vmamba', *keys), tmp_path, silent, bar=True)
    shown = capfd.readouterr().err
    assert '2/2 [' in shown and 'images/s' in shown and 'epoch 1/1: loss' in shown
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    rows = read_table(tmp_path / 'steps.csv')
    assert [event.value for event in events.Scalars('train/loss')] == pytest.approx(
        [float(row['loss']) for row in rows]
    )
    assert [event.step for event in events.Scalars('epoch/loss')] == [1]


def columns(folder, table, names):
    return [[row[name] for name in names] for row in read_table(folder / table)]


def test_killed_at_any_moment_it_continues_to_the_bit(tmp_path):
    """SIGKILL in the middle of an epoch, then SIGTERM, then on to the end; with all that is random."""
    augmented = ['mixup=0.8', 'cutmix=1', 'random_erase=0.25', 'auto_augment=rand-m9-mstd0.5-inc1', 'clip_grad=1']
    inside = ['drop_path=0.2', 'ema=0.9', 'shuffle_layers=0.9', 'model_args={depth: 2}']
    keys = [*SMALL, *augmented, *inside, 'epochs=3', 'checkpoint_steps=3', 'micro_batch=16', 'val_split=null']
    train(load_recipe(None, keys, model='test_vim', data='digits'), tmp_path / 'whole', silent)
    output = tmp_path / 'killed'
    command = [sys.executable, '-m', 'visionssm', 'train', '--model', 'test_vim', '--data', 'digits', '--set', *keys]
    command += ['--output', str(output), '--resume', 'auto', '--device', 'cpu']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    for number, rows, code in ((signal.SIGKILL, 5, -9), (signal.SIGTERM, 9, 143), (None, 12, 0)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            end = time.monotonic() + 120
            while number and len(read_table(output / 'steps.csv')) < rows and time.monotonic() < end:
                time.sleep(0.005)
            if number:
                process.send_signal(number)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == code and 'Traceback' not in err, err
    assert 'going on from' in out
    for table, names in (
        ('steps.csv', ('step', 'epoch', 'loss', 'gradient_norm', 'lr')),
        ('epochs.csv', ('epoch', 'loss')),
    ):
        assert columns(output, table, names) == columns(tmp_path / 'whole', table, names)
    for name in ('model.safetensors', 'config.json'):
        assert (output / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, capsys):
    """A limit on the size of files is what a full disk is to a program: a write that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    first = tmp_path / 'checkpoints' / 'step-00000004.pt'

    def fill(line):
        if line.startswith('epoch 1/'):
            resource.setrlimit(resource.RLIMIT_FSIZE, (first.stat().st_size // 2, hard))

    try:
        with pytest.raises(
            OSError, match=r'cannot write .*step-00000008\.pt: .*; the last good checkpoint is .*step-00000004\.pt'
        ) as caught:
            train(recipe('test_vmamba', 'epochs=2', 'val_split=null'), tmp_path, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == [first.name]
    history = train(recipe('test_vmamba', 'epochs=2', 'val_split=null'), tmp_path, silent, resume='auto')
    assert len(history) == 2


def test_resuming_is_asked_for_and_of_the_same_recipe(tmp_path):
    keys = ['epochs=2', 'val_split=null', 'train_samples=32', 'keep_last=1']
    train(recipe('test_vmamba', *keys), tmp_path, silent)
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['step-00000002.pt']
    with pytest.raises(ValueError, match='holds a run; go on with --resume auto'):
        train(recipe('test_vmamba', *keys), tmp_path, silent)
    with pytest.raises(ValueError, match=r'another recipe: lr \(0\.001, now 0\.1\)'):
        train(recipe('test_vmamba', *keys, 'lr=0.1'), tmp_path, silent, resume='auto')
    (tmp_path / 'checkpoints' / 'step-00000003.pt').write_bytes(b'half a file')
    lines = []
    assert len(train(recipe('test_vmamba', *keys), tmp_path, lines.append, resume='auto')) == 2
    assert 'step-00000002.pt' in lines[0]
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        train(
            recipe('test_vmamba', *keys),
            tmp_path / 'new',
            silent,
            resume=str(tmp_path / 'checkpoints' / 'step-00000003.pt'),
        )


def test_a_loss_that_is_no_number_names_layer_and_checkpoint(tmp_path, monkeypatch, capsys):
    keys = [*SMALL, 'epochs=2', 'val_split=null', 'train_samples=32', 'lr=1e30', 'warmup_lr=1e30', 'min_lr=1e30']
    command = ['train', '--model', 'test_vmamba', '--data', 'digits', '--device', 'cpu']
    command += ['--output', str(tmp_path), '--set', *keys]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert 'at step 1 (epoch 2); first in the output of ' in error and 'step-00000001.pt' in error
    with pytest.raises(NonFiniteLossError):
        train(load_recipe(None, keys, model='test_vmamba', data='digits'), tmp_path, silent, resume='auto')
    skip = load_recipe(None, [*keys, 'on_non_finite=skip', 'epochs=2'], model='test_vmamba', data='digits')
    lines = []
    train(skip, tmp_path, lines.append, resume='auto')
    assert '1 updates skipped' in lines[-2]


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_reduced_precision(precision, tmp_path):
    (epoch,) = train(recipe('test_vmamba', f'precision={precision}', 'train_samples=64'), tmp_path, silent)
    assert 0 < epoch.loss < 4
    state = read_checkpoint(tmp_path / 'checkpoints' / 'best.pt')
    assert (state['scaler'] is not None) == (precision == 'fp16')
    assert all(x.dtype == torch.float32 for x in state['model'].values() if x.is_floating_point())


@pytest.mark.parametrize(
    'model, extra',
    [
        ('test_groupmamba', ['distillation=hard', 'base_weight=0.5', 'distillation_weight=0.5']),
        ('test_vmamba', ['distillation=soft', 'distillation_weight=5', 'temperature=2']),
    ],
)
def test_distils_from_any_timm_model(model, extra, trained, tmp_path):
    extra = [*extra, f'teacher=local-dir:{trained}', 'train_samples=32', 'val_split=null']
    (epoch,) = train(recipe(model, *extra), tmp_path, silent)
    assert 0 < epoch.loss < 20


def test_teachers_that_do_not_fit(trained, tmp_path):
    for extra, message in (
        (['teacher=no_such'], 'cannot be loaded'),
        (['num_classes=12'], '10 classes, and the student has 12'),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe('test_vmamba', f'teacher=local-dir:{trained}', *extra), tmp_path, silent)


def test_mesa_begins_with_its_epoch(tmp_path):
    keys = ['epochs=2', 'train_samples=32', 'val_split=null', 'ema=0.5']
    plain = train(recipe('test_a2mamba', *keys), tmp_path / 'plain', silent)
    mesa = train(recipe('test_a2mamba', *keys, 'mesa=1', 'mesa_start=1'), tmp_path / 'mesa', silent)
    assert mesa[0].loss == plain[0].loss and mesa[1].loss > plain[1].loss + 1


def test_linear_probing_leaves_the_backbone(trained, tmp_path):
    extra = [f'initial={trained}', 'freeze=backbone', 'lr=0.01', 'train_samples=32', 'val_split=null', 'drop_path=0.5']
    train(recipe('test_vim', *extra), tmp_path, silent)
    before, after = (timm.create_model(f'local-dir:{f}', pretrained=True).state_dict() for f in (trained, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {'head.weight', 'head.bias'}


@pytest.mark.parametrize(
    'extra', [['model_args={stride: 8}', 'img_size=96'], ['img_size=128']], ids=['stride 8', 'larger']
)
def test_fine_tuning_keeps_class_token_and_positions(extra, trained):
    """Rows of the grid are resampled, that of the class token in their middle is not."""
    before = timm.create_model(f'local-dir:{trained}', pretrained=True)
    with start_processes('cpu') as alone:
        after = Trainer(recipe('test_vim', *extra, f'initial={trained}', 'layer_decay=0.8'), alone, silent)
    grid = after.model.patch_embed.grid_size
    assert grid == ((11, 11) if len(extra) == 2 else (8, 8))
    expected = resample_pos_embed(before.pos_embed, list(grid), [6, 6])
    assert torch.equal(after.model.pos_embed, expected)
    assert torch.equal(expected[:, grid[0] * grid[1] // 2], before.pos_embed[:, 18])
    assert torch.equal(after.model.head.weight, before.head.weight)
    scales = {group['lr_scale'] for group in after.optimizer.param_groups}
    assert max(scales) == 1 and min(scales) == pytest.approx(0.8**5)


def test_command_line(capsys):
    assert cli.main(['train', '--list-keys']) == 0
    assert 'shuffle_layers' in capsys.readouterr().out
    for arguments, message in (
        (['--model', 'test_vmambo', '--data', 'digits'], 'unknown model'),
        (['--model', 'resnet18.nope', '--data', 'digits'], 'nope'),
        (['--model', 'test_vmamba', '--data', '/no/such/folder'], 'there is no such folder'),
        (['--model', 'test_vmamba', '--data', 'digits', '--set', 'batchsize=3'], 'did you mean batch_size'),
        (['--model', 'test_vmamba', '--data', 'digits', '--set', 'batch_size=3000'], 'there are 1437 training images'),
        (
            ['--model', 'test_vmamba', '--data', 'digits', '--set', 'batch_size=64', 'shuffle_layers=0.5'],
            'one resolution',
        ),
        (['--model', 'test_vmamba', '--data', 'digits', '--set', 'batch_size=64', 'parallel=fsdp'], 'torchrun'),
        (['--model', 'test_vmamba', '--data', 'digits', '--set', 'batch_size=64', 'optimizer=adamx'], 'adamx'),
        (['--model', 'test_vmamba', '--data', 'digits', '--set', 'model_args={dephts: 2}'], 'dephts'),
        (['--model', 'test_vmamba', '--data', 'digits', '--set', 'batch_size=64', 'initial=/no/file'], 'no weights at'),
        (['--config', '/no/recipe.yaml'], 'neither a file nor'),
        (['--model', 'test_vmamba', '--data', 'digits', '--device', 'abacus'], 'abacus'),
    ):
        assert cli.main(['train', '--output', '/tmp/no-such-run', *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1, error


def test_saved_model_claims_no_published_accuracy(tmp_path):
    """The tag of the weights that training began with is not that of the weights it ends with."""
    model = timm.create_model('a2mamba_nano.in1k', num_classes=10)
    assert model.pretrained_cfg['tag'] == 'in1k'
    save_model(model, tmp_path / 'model', None, {}, 'fine-tuned for a test')
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert not config['pretrained_cfg'].get('tag')
    card = folder_card(config)
    assert 'reported by the authors' not in card and 'fine-tuned for a test' in card
