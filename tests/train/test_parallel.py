"""Two processes over Gloo, started by torchrun, against one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')
pytest.importorskip('tqdm')

from visionssm.testing import relative_error  # noqa: E402
from visionssm.train.log import read_table  # noqa: E402
from visionssm.train.parallel import start_processes  # noqa: E402

SCRIPT = Path(__file__).with_name('two_processes.py')
spec = importlib.util.spec_from_file_location('two_processes', SCRIPT)
two = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp('two')
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        str(SCRIPT),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize('kind', two.RECIPES)
def test_gradients_of_two_are_those_of_one_with_twice_the_batch(folder, kind):
    """DDP, and FSDP with accumulation; the models have no batch norm, whose statistics are each process's own."""
    model, _, extra = two.RECIPES[kind]
    extra = [key for key in extra if not key.startswith('parallel')]
    with start_processes('cpu') as alone:
        expected = two.gradients(two.make_recipe(model, [*extra, 'epochs=1', 'warmup_epochs=0']), alone)
    found = torch.load(folder / f'{kind}.pt', weights_only=True)
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-6, worst


@pytest.mark.parametrize('kind', two.RECIPES)
def test_stopped_by_sigterm_and_resumed_is_the_same_run(folder, kind):
    assert json.loads((folder / 'codes.json').read_text())[kind] == 143
    whole, resumed = (folder / f'{kind}-{name}' for name in ('whole', 'interrupted'))
    rows, again = read_table(whole / 'steps.csv'), read_table(resumed / 'steps.csv')
    assert len(rows) == 4
    for name in ('step', 'epoch', 'loss', 'gradient_norm', 'lr'):
        assert [row[name] for row in rows] == [row[name] for row in again], name
    assert (whole / 'model.safetensors').read_bytes() == (resumed / 'model.safetensors').read_bytes()


def test_a_sharded_model_is_written_whole(folder):
    model = timm.create_model(f'local-dir:{folder / "fsdp-whole"}', pretrained=True).eval()
    state = torch.load(sorted((folder / 'fsdp-whole' / 'checkpoints').glob('step-*'))[-1], weights_only=True)
    assert all(torch.equal(x, state['model_ema'][name]) for name, x in model.state_dict().items())
    assert len(state['random']) == 2
