"""The demo's parts, a tiny run of it, and what is left when it is interrupted."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import timm
import torch

pytest.importorskip('sklearn')
pytest.importorskip('matplotlib')
pytest.importorskip('tqdm')

from visionssm import extras  # noqa: E402
from visionssm.apps.classify import classify  # noqa: E402
from visionssm.catalog.models import model_names  # noqa: E402
from visionssm.data.digits import image_size, load_digits  # noqa: E402
from visionssm.demo import run as demo  # noqa: E402
from visionssm.demo import training
from visionssm.scans import get_scan  # noqa: E402

TINY = training.DemoOptions('test_vmamba', epochs=1, limit=150)
FILES = {'config.json', 'model.safetensors', 'history.csv', 'demo.png', 'samples'}


@pytest.fixture(autouse=True)
def unchanged_process():
    """The demo command sets the number of threads and a signal handler, for its process."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished tiny run: (folder, result, lines said)."""
    folder, lines = tmp_path_factory.mktemp('demo') / 'runs' / 'demo', []
    return folder, demo.run_demo(replace(TINY, scan='spiral'), folder, lines.append), lines


def test_split_is_fixed_stratified_and_disjoint():
    digits, again = load_digits(), load_digits()
    assert len(digits.train_labels) == 1437 and len(digits.test_labels) == 360
    assert all(torch.equal(a, b) for a, b in zip(digits, again, strict=True))
    counts = digits.test_labels.bincount()
    assert counts.min() >= 34 and counts.max() <= 38
    assert float(digits.train_images.min()) == 0 and float(digits.train_images.max()) == 1
    # no held-out image is among those trained on: the data set has no duplicates
    distances = torch.cdist(digits.test_images.flatten(1), digits.train_images.flatten(1))
    assert distances.min() > 0


def test_the_whole_folder_is_there(finished):
    folder, trained, lines = finished
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ['demo']
    assert any('identical logits' in line for line in lines)
    assert any(f'{trained.accuracy:.2%}' in line for line in lines)
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == 'test_vmamba'
    assert config['label_names'] == list('0123456789')
    assert (
        config['model_args']['scan'] == '{"name":"spiral","directions":4}' or 'spiral' in config['model_args']['scan']
    )
    assert config['pretrained_cfg']['input_size'][0] == 1
    assert 'reported by the authors' not in str(config)
    rows = list(csv.DictReader((folder / 'history.csv').open()))
    assert len(rows) == 1 and float(rows[0]['accuracy']) == pytest.approx(trained.accuracy, abs=1e-4)


def test_saved_model_is_the_trained_one(finished):
    folder, trained, _ = finished
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert loaded.scan == trained.model.scan
    images = torch.rand_like(trained.images[:2])
    with torch.inference_mode():
        assert torch.equal(loaded(images), trained.model.eval()(images))


def test_saved_samples_classify_as_the_held_out_images(finished):
    """Files, read and resized by timm's transform, are what the model was evaluated on."""
    folder, trained, _ = finished
    digits = load_digits()
    for result in classify(trained.model, [folder / 'samples' / 'digit_3.png'], topk=10):
        found = {p['index']: p['probability'] for p in result['predictions']}
    index = int((digits.test_labels == 3).nonzero()[0])
    expected = trained.probabilities[index]
    assert torch.tensor([found[i] for i in range(10)]) == pytest.approx(expected, abs=0.01)


def test_picture_is_a_picture(finished):
    from matplotlib import image

    picture = image.imread(finished[0] / 'demo.png')
    assert picture.shape[0] > 600 and picture.shape[1] > 1000 and picture.std() > 0.1


def train(options):
    with training.make_trainer(options) as trainer:
        return training.train(trainer)


def test_same_seed_same_model():
    first, second = (train(TINY) for _ in range(2))
    assert torch.equal(first.probabilities, second.probabilities)
    other = train(replace(TINY, seed=1))
    assert not torch.equal(first.probabilities, other.probabilities)


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    train(TINY)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]


def classes_of_noise(options):
    """Untrained logits of an image of the size that the demo gives the model, and the model."""
    with training.make_trainer(options) as trainer, torch.inference_mode():
        return trainer.model.eval()(torch.rand(1, *trainer.image.input_size)), trainer.model


@pytest.mark.parametrize('name', model_names('test_*'))
@pytest.mark.parametrize('scan', [None, 'hilbert', 'multiscale', '{"name":"local","window":2}', 'multihead'])
def test_any_backbone_takes_any_scan(name, scan):
    if name in ('test_mambaout', 'test_vssd') and scan:  # those that scan nothing
        with pytest.raises(ValueError, match='no scan order to choose'):
            training.recipe_of(training.DemoOptions(name, scan))
        return
    logits, model = classes_of_noise(training.DemoOptions(name, scan))
    assert scan is None or get_scan(scan).name == get_scan(model.scan).name
    assert logits.shape == (1, 10)


@pytest.mark.parametrize('name', model_names('*_nano'))
def test_small_models_take_the_digits(name):
    assert classes_of_noise(training.DemoOptions(name))[0].shape == (1, 10)


@pytest.mark.parametrize(
    'reductions, size', [([4, 8, 16, 32], 40), ([16, 16], 96), ([2, 4, 8, 16], 24), ([14, 14], 112), ([1], 8)]
)
def test_image_size(reductions, size):
    assert image_size(reductions) == size
    assert size / reductions[0] >= 6 and size > reductions[-1]


def test_rerun_replaces_an_earlier_demo_only(finished, tmp_path):
    output = tmp_path / 'demo'
    demo.run_demo(TINY, output, lambda line: None)
    before = (output / 'model.safetensors').read_bytes()
    demo.run_demo(replace(TINY, seed=3), output, lambda line: None)
    assert {path.name for path in output.iterdir()} == FILES
    assert (output / 'model.safetensors').read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ['demo']
    (output / 'thesis.tex').write_text('years of work')
    with pytest.raises(ValueError, match='thesis.tex'):
        demo.run_demo(TINY, output, lambda line: None)
    assert (output / 'thesis.tex').exists() and (output / 'demo.png').exists()


@pytest.mark.parametrize('place', ['file', 'file/below', '/proc/demo'])
def test_output_that_cannot_be_written_is_refused_first(tmp_path, place):
    (tmp_path / 'file').write_text('text')
    output = tmp_path / place
    if place == '/proc/demo' and not os.path.isdir('/proc'):
        pytest.skip('no /proc here')
    with pytest.raises(ValueError, match=str(output)):
        demo.run_demo(TINY, output, lambda line: None)
    assert (tmp_path / 'file').read_text() == 'text'


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_nothing(tmp_path, number, code):
    output = tmp_path / 'runs' / 'demo'
    command = [sys.executable, '-m', 'visionssm', 'demo', '--model', 'test_vmamba', '--epochs', '500', '--limit', '200']
    process = subprocess.Popen(
        [*command, '--output', str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith('epoch 1/'):
                break
        time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert 'Traceback' not in err
    assert list(tmp_path.iterdir()) == []


def test_compare_scans(capsys):
    from visionssm import cli

    command = ['demo', '--model', 'test_vmamba', '--epochs', '1', '--limit', '100', '--compare-scans']
    assert cli.main([*command, 'raster,{"name":"local","window":2,"directions":4}']) == 0
    table = capsys.readouterr().out.splitlines()[-5:]
    assert table[0].split() == ['scan', 'held-out', 'accuracy', 'seconds', 'params', '(M)']
    assert {line.split()[0] for line in table[2:4]} == {'raster', '{"name":"local","window":2,"directions":4}'}


def test_missing_extra(monkeypatch, capsys):
    from visionssm import cli

    find_spec = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, 'find_spec', lambda name: None if name == 'sklearn' else find_spec(name))
    assert cli.main(['demo']) == 2
    assert capsys.readouterr().err == 'visionssm: the demo needs sklearn: pip install "visionssm[demo]"\n'
