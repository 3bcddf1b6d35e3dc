"""What `visionssm compare` measures, writes and refuses, and that it goes on where it was stopped."""

import csv
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from visionssm.cli import main
from visionssm.compare import Row, compare, report
from visionssm.compare.candidates import make_candidates
from visionssm.compare.cost import interleaved_medians, peak_extra_bytes

SMALL = {
    'epochs': 1, 'seeds': 2, 'img_size': 32, 'batch_size': 8, 'overrides': ['workers=0', 'hflip=0', 'scale=[0.9, 1.0]'],
    'speed_batch': 2, 'rounds': 2,
}  # fmt: skip
PROBE = {**SMALL, 'epochs': None, 'initial': 'none'}
MODELS = ['test_vim@scan=hilbert', 'test_mambaout']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Dark and bright images, twenty of each, in one folder per class."""
    root, random = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for name, level in (('dark', 40), ('bright', 200)):
        (root / name).mkdir()
        for i in range(20):
            pixels = random.integers(level - 30, level + 30, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f'{i}.png')
    return str(root)


@pytest.fixture(scope='module')
def done(folder, tmp_path_factory):
    """A comparison, and what it said."""
    output, said = tmp_path_factory.mktemp('compare') / 'out', []
    return output, compare(MODELS, folder, output, **SMALL, say=said.append), said


def test_table_and_files(done):
    output, (rows, notes), _ = done
    assert [row.name for row in rows] == MODELS
    for row in rows:
        assert row.input == (3, 32, 32) and len(row.accuracies) == len(row.seconds) == 2
        assert row.images_per_second > 0 and row.training_memory_mib > row.memory_mib > 0
        assert row.mean == pytest.approx(np.mean(row.accuracies)) and row.parameters > 1000 and row.macs > 1000
        assert row.deviation == pytest.approx(np.std(row.accuracies, ddof=1))
    assert '8 images' in notes[0] and 'held-out 0.2' in notes[0] and '2 seeds' in notes[0]
    assert 'batches of 2' in notes[1] and 'thread' in notes[1]
    read = json.loads((output / 'compare.json').read_text())
    assert [row['accuracy'] for row in read['rows']] == [row.mean for row in rows]
    with (output / 'compare.csv').open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line['accuracies'] for line in lines] == [' '.join(map(str, row.accuracies)) for row in rows]
    assert (output / 'compare.md').read_text().startswith('| model ') and notes[0] in (
        output / 'compare.md'
    ).read_text()
    assert (output / 'compare.png').stat().st_size > 10_000
    assert not list(output.glob('runs/*/checkpoints')) and len(list(output.glob('runs/*/model.safetensors'))) == 4


def test_goes_on_where_it_was_stopped(done, folder, tmp_path):
    _, finished, _ = done
    lines = []

    def stop_in_the_second_run(line):
        lines.append(line)
        if line.startswith(f'{MODELS[0]}, seed 1: epoch'):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(MODELS[:1], folder, tmp_path / 'out', **SMALL, say=stop_in_the_second_run)
    assert len(list(tmp_path.glob('out/runs/*/result.json'))) == 1 and not (tmp_path / 'out/compare.md').exists()
    lines.clear()
    (row,), _ = compare(MODELS[:1], folder, tmp_path / 'out', **SMALL, say=lines.append)
    assert not [line for line in lines if 'seed 0' in line or line.startswith('speed')]
    assert any('going on from' in line for line in lines)
    assert row.accuracies == finished.rows[0].accuracies


@pytest.mark.parametrize('name', ['speed.json', 'runs/*/result.json'])
def test_results_that_are_not_ours(name, done, folder, tmp_path):
    shutil.copytree(done[0], tmp_path / 'out')
    file = next((tmp_path / 'out').glob(name))
    settings = json.loads(file.read_text())['settings']
    file.write_text(json.dumps({'settings': settings, 'measured': 5, 'accuracy': 'x', 'versions': 5}))
    with pytest.raises(ValueError, match='is not as it was written'):
        compare(MODELS, folder, tmp_path / 'out', **SMALL, say=str)


def test_other_settings_are_not_mixed(done, folder, capsys):
    output, finished, _ = done
    before = (output / 'compare.json').read_bytes()
    for change, text in (
        ({'epochs': 2}, 'epochs (1, now 2)'),
        ({'overrides': [*SMALL['overrides'], 'lr=0.1']}, 'lr (0.0005, now 0.1)'),
        ({**PROBE, 'probe': 'knn'}, "method ('train', now 'knn')"),
    ):
        with pytest.raises(ValueError) as caught:
            compare(MODELS, folder, output, **{**SMALL, **change}, say=str)
        assert text in str(caught.value)
    assert (output / 'compare.json').read_bytes() == before
    lines = []  # what is there is kept, and more may be asked for
    rows, _ = compare([*MODELS, 'test_vssd'], folder, output, **{**SMALL, 'seeds': 1}, say=lines.append)
    assert [row.accuracies for row in rows[:2]] == [row.accuracies[:1] for row in finished.rows]
    assert not [line for line in lines if line.startswith(tuple(MODELS))]


@pytest.mark.parametrize('probe', ['linear', 'knn'])
def test_probes(probe, folder, tmp_path):
    (row,), notes = compare(['test_vim'], folder, tmp_path, **PROBE, probe=probe, say=str)
    assert row.accuracies == (1.0, 1.0) and not row.seconds and row.training_memory_mib is None
    assert 'frozen features' in notes[0] and 'training' not in ''.join(row.cells())


def test_features_of_given_weights_need_one_run(done, folder, tmp_path):
    output, _, _ = done
    (trained,) = output.glob('runs/test_vim*seed0')
    (row,), notes = compare(
        [f'local-dir:{trained}'], folder, tmp_path, **{**PROBE, 'initial': None}, probe='knn', say=str
    )
    assert row.accuracies == (1.0,) and 'deviation' not in notes[0]


def test_candidates():
    keys = {'data': 'digits', 'epochs': 3}
    found = make_candidates(
        ['test_vim', 'resnet10t', 'test_vmamba@scan=snake'], ['raster', 'hilbert'], None, [], **keys
    )
    names = ['test_vim@scan=raster', 'test_vim@scan=hilbert', 'resnet10t', 'test_vmamba@scan=snake']
    assert [candidate.name for candidate in found] == names
    spec = 'test_vim@scan={name: local, window: 4}@lr=0.1@img_size=48'
    (one,) = make_candidates([spec], [], None, ['lr=1', 'model_args={depth: 2}'], **keys)
    assert one.recipe.model_args == {'depth': 2, 'scan': {'name': 'local', 'window': 4}}
    assert (one.recipe.lr, one.recipe.img_size, one.recipe.epochs) == (0.1, 48, 3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['test_vin'], 'test_vim'),
        (['test_vim', 'test_vim'], 'test_vim stands twice'),
        (['test_vim@hilbert'], 'give MODEL or MODEL@KEY=VALUE'),
        (['test_vim@seed=1'], 'all sides of a comparison share'),
        (['test_vim@nothing=1'], 'nothing'),
        (['test_vim', '--scan', 'hilbrt'], 'hilbert'),
        (['resnet10t', '--scan', 'hilbert'], 'no scan order to choose'),
        (['test_vim', '--probe', 'svm'], 'allowed are linear, knn'),
        (['test_vim', '--probe', 'knn', '--epochs', '2'], 'leave epochs or probe out'),
        (['test_vim', '--probe', 'knn'], 'test_vim has no published weights'),
        (['test_vim', '--initial', 'nowhere.pt'], 'no weights at nowhere.pt'),
        (['test_vim', '--batch-size', '8', '--initial', __file__], 'test_compare.py'),
        (['test_vim', '--set', 'batch_size=1000'], 'batch_size is 1000; there are'),
        (['test_vim', '--img-size', '8'], 'img_size is 8x8'),
        (['test_vim', '--set', 'val_split=null'], 'no accuracy to compare'),
        (['test_vim', '--device', 'cuda:77'], 'not available'),
        (['test_vim', '--data', 'nowhere'], 'no such folder'),
        (['test_vim', '--data', 'wds/x'], 'is a stream'),
    ],
)
def test_bad_input(arguments, message, folder, tmp_path, capsys):
    data = [] if '--data' in arguments else ['--data', folder]
    assert main(['compare', *arguments, *data, '--output', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count('\n') == 1 and not said.out
    assert not (tmp_path / 'out').exists()


def test_folders_of_something_else(folder, tmp_path):
    (tmp_path / 'file').write_text('mine')
    for output, message in ((tmp_path, 'holds file, which no comparison wrote'), (tmp_path / 'file', 'is a file')):
        with pytest.raises(ValueError, match=message):
            compare(['test_vim'], folder, output, **SMALL, say=str)
    assert [file.name for file in tmp_path.iterdir()] == ['file']


def row(i, accuracies):
    return Row(
        f'model_with_a_name_{i}@scan=hilbert',
        (3, 224, 224),
        10**6,
        1e9 * 1.3**i,
        50.0 / (i + 1),
        1.0,
        2.0,
        accuracies,
        (),
    )


def test_labels_of_the_picture_do_not_overlap(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, stream, **_: (self.draw_without_rendering(), drawn.append(self))
    )
    rows = [row(i, (0.5 + i / 40, 0.52 + i / 40)) for i in range(16)]
    report.draw([*rows, row(16, (None, 0.5))], ['What was measured, ' * 20], tmp_path / 'x.png')
    (figure,) = drawn
    edges = figure.bbox
    for axes in figure.axes:
        for axis, side in ((axes.yaxis, 'y'), (axes.xaxis, 'x')):
            low, high = sorted(axis.get_view_interval())
            ticks = [x for x in axis.get_major_ticks() if low <= x.get_loc() <= high and x.label1.get_text()]
            boxes = sorted(
                (tick.label1.get_window_extent() for tick in ticks), key=lambda box: getattr(box, f'{side}0')
            )
            assert all(getattr(a, f'{side}1') <= getattr(b, f'{side}0') for a, b in zip(boxes, boxes[1:], strict=False))
            assert all(box.x0 >= 0 and box.x1 <= edges.x1 and box.y0 >= 0 for box in boxes)
    assert figure._suptitle.get_window_extent().x1 <= edges.x1
    assert figure._suptitle.get_window_extent().y0 >= max(axes.get_window_extent().y1 for axes in figure.axes)
    assert any(text.get_text() == 'diverged' for text in figure.axes[0].texts)


def test_measures():
    def product():
        return torch.randn(500, 500) @ torch.randn(500, 500)

    assert peak_extra_bytes(product) == 3 * 500 * 500 * 4
    turns = []

    def timer(name, seconds):
        turns.append(name)
        return seconds[turns.count(name) - 1]

    sides = {'a': (partial(timer, 'a', [9, 1, 2, 7]), 3), 'b': (partial(timer, 'b', [9, 5]), 1)}
    assert interleaved_medians(sides) == {'a': 2, 'b': 5}
    assert turns == ['a', 'b', 'a', 'b', 'a', 'a']
