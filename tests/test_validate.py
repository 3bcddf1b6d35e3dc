"""Accuracy on a folder of real digits: right, resumable, loud about what is wrong; the same from shards and the Hub."""

import csv
import importlib.util
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

pytest.importorskip('sklearn')

from visionssm.apps import validate as _validation  # noqa: E402
from visionssm.apps.validate import Options, gather, validate  # noqa: E402
from visionssm.data.digits import load_digits  # noqa: E402
from visionssm.files import write_whole  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
COUNT = 45


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A folder with val/<class>/<image>.png."""
    folder = tmp_path_factory.mktemp('digits')
    split = load_digits(300)
    for i, (image, label) in enumerate(zip(split.test_images[:COUNT], split.test_labels, strict=False)):
        file = folder / 'val' / f'{label}' / f'{i:03}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).to(torch.uint8).numpy()).resize((40, 32)).save(file)
    assert len(list((folder / 'val').iterdir())) == 10
    return folder


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """(folder of a model that is right now and then, the model)."""
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(3)
    made = timm.create_model(
        'test_vmamba',
        num_classes=10,
        in_chans=1,
        pretrained_cfg_overlay={'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (0.5,)},
    ).eval()
    save_for_hf(made, str(folder), model_args={'in_chans': 1}, safe_serialization=True)
    return folder, made


def options(digits, trained, **kwargs):
    base = {'data': str(digits), 'model': f'local-dir:{trained[0]}', 'batch_size': 8, 'workers': 0}
    return Options(**{**base, **kwargs})


def expected(digits, model):
    """Counted image by image."""
    transform = create_transform(**resolve_data_config({}, model=model))
    top1 = top5 = 0
    for file in sorted((digits / 'val').glob('*/*.png')):
        with torch.inference_mode():
            best = model(transform(Image.open(file).convert('L'))[None])[0].topk(5)[1].tolist()
        top1 += best[0] == int(file.parent.name)
        top5 += int(file.parent.name) in best
    return round(100 * top1 / COUNT, 4), round(100 * top5 / COUNT, 4)


def test_accuracy(digits, model, tmp_path):
    result = validate(options(digits, model), tmp_path)
    top1, top5 = expected(digits, model[1])
    assert (result['top1'], result['top5']) == (top1, top5) and 0 < top1 < top5 < 100
    assert result['top1_err'] == pytest.approx(100 - top1) and result['images'] == COUNT
    assert result['img_size'] == 32 and result['dtype'] == 'float32' and result['param_count'] > 0
    (file,) = tmp_path.glob('*.json')
    assert json.loads(file.read_text()) == result
    assert {path.name for path in tmp_path.iterdir()} == {file.name, 'results.csv'}


@pytest.mark.parametrize('changed', [{'img_size': 48}, {'scan': 'spiral'}, {'dtype': 'bfloat16'}])
def test_options_have_files_of_their_own(changed, digits, model, tmp_path):
    result = validate(options(digits, model, **changed), tmp_path)
    (file,) = tmp_path.glob('*.json')
    assert str(next(iter(changed.values()))) in file.name
    assert result['img_size'] == changed.get('img_size', 32)


def test_some_classes_of_many(digits, model, tmp_path):
    """A class map says which of the model's classes the folders are."""
    torch.manual_seed(0)
    many = timm.create_model('test_vmamba', pretrained_cfg_overlay={'input_size': (3, 32, 32)})
    save_for_hf(many, str(tmp_path / 'many'), safe_serialization=True)
    names = {'model': f'local-dir:{tmp_path / "many"}', 'class_map': str(tmp_path / 'map.json')}
    (tmp_path / 'map.json').write_text(json.dumps({str(digit): 100 * digit for digit in range(10)}))
    assert validate(options(digits, model, **names), tmp_path / 'out')['images'] == COUNT
    (tmp_path / 'map.json').write_text(json.dumps({str(digit): 200 * digit for digit in range(10)}))
    with pytest.raises(ValueError, match='has 1801 classes'):
        validate(options(digits, model, **names), tmp_path / 'out')


def test_no_result_replaces_another(digits, model, tmp_path):
    """Checkpoints of one name in two folders, two splits, two copies of the data, new weights in an old place."""
    (digits / 'train').exists() or (digits / 'train').symlink_to(digits / 'val')
    (tmp_path / 'copy').symlink_to(digits)
    checkpoints = [tmp_path / name for name in ('a/ck.pth', 'b/ck.pth', 'other.pth')]
    for seed, file in enumerate(checkpoints):
        file.parent.mkdir(exist_ok=True)
        torch.manual_seed(seed)
        torch.save(timm.create_model('test_vmamba').state_dict(), file)
    names = tmp_path / 'map.json'
    names.write_text(json.dumps({str(digit): digit for digit in range(10)}))

    def measure(checkpoint, data=digits, **kwargs):
        kwargs = {'model': 'test_vmamba', 'checkpoint': str(checkpoint), 'class_map': str(names), **kwargs}
        return validate(options(data, model, **kwargs), tmp_path / 'out')

    results = [measure(checkpoint) for checkpoint in checkpoints]
    results += [measure(checkpoints[0], split='train'), measure(checkpoints[0], tmp_path / 'copy')]
    checkpoints[0].write_bytes(checkpoints[1].read_bytes())
    results.append(measure(checkpoints[0]))
    files = {json.dumps(json.loads(file.read_text()), sort_keys=True) for file in (tmp_path / 'out').glob('*.json')}
    assert files == {json.dumps(result, sort_keys=True) for result in results} and len(files) == 6
    rows = list(csv.DictReader((tmp_path / 'out' / 'results.csv').open()))
    assert len({row['model'] for row in rows}) == 6
    assert all('-ck-' in row['model'] or '-other-' in row['model'] for row in rows)
    assert measure(checkpoints[2], batch_size=3)['top1'] == results[2]['top1']  # the same again is no other result
    assert len(list((tmp_path / 'out').glob('*.json'))) == 6


def test_parallel_runs_lose_no_row(tmp_path):
    """Whoever writes the table last has seen every result that is there."""
    names = [f'model{i}' for i in range(40)]

    def finish(name):
        write_whole(tmp_path / f'{name}.json', json.dumps({'model': name, 'top1': 1.0}))
        gather(tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finish, names))
    with (tmp_path / 'results.csv').open() as table:
        assert {row['model'] for row in csv.DictReader(table)} == set(names)


class Stop(Exception):
    pass


def interrupt_after(monkeypatch, batches):
    real = _validation._batches

    def some(loader):
        for number, batch in enumerate(real(loader)):
            if number == batches:
                raise Stop
            yield batch

    monkeypatch.setattr(_validation, '_batches', some)
    return lambda: monkeypatch.setattr(_validation, '_batches', real)


def test_resume(digits, model, tmp_path, monkeypatch):
    restore = interrupt_after(monkeypatch, 2)
    with pytest.raises(Stop):
        validate(options(digits, model), tmp_path)
    (partial,) = tmp_path.iterdir()
    assert partial.suffix == '.partial' and json.loads(partial.read_text())['images'] == 16
    restore()
    seen = []
    real = _validation._Images.__getitem__
    monkeypatch.setattr(_validation._Images, '__getitem__', lambda self, i: seen.append(i) or real(self, i))
    result = validate(options(digits, model, batch_size=5), tmp_path, resume=True)  # the rest in other batches
    assert len(seen) == COUNT - 16
    assert (result['top1'], result['top5']) == expected(digits, model[1])
    assert not partial.exists()
    seen.clear()
    assert validate(options(digits, model), tmp_path, resume=True) == result and not seen
    validate(options(digits, model), tmp_path)  # without it, from the start
    assert len(seen) == COUNT


def test_resume_of_something_else(digits, model, tmp_path, monkeypatch):
    restore = interrupt_after(monkeypatch, 1)
    with pytest.raises(Stop):
        validate(options(digits, model), tmp_path)
    restore()
    (partial,) = tmp_path.glob('*.partial')
    stored = json.loads(partial.read_text())
    stored['settings']['weights'] = '0'
    partial.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match='different weights'):
        validate(options(digits, model), tmp_path, resume=True)


def test_unreadable_image_is_named(digits, model, tmp_path):
    copy = tmp_path / 'data'
    for file in (digits / 'val').glob('*/*.png'):
        target = copy / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
    bad = sorted(copy.glob('3/*.png'))[0]
    whole = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(whole[: len(whole) // 2])
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r'3/\d+\.png cannot be read: [^\n]+$') as caught:
            validate(options(copy, model, workers=workers), tmp_path / 'out')
        assert str(bad) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'model': 'test_vmamba', 'checkpoint': 'CHECKPOINT'}, r'has 10 classes, test_vmamba 1000'),
        ({'data': 'NOWHERE'}, 'no folder of images'),
        ({'data': 'EMPTY'}, 'Found 0 images'),
        ({'data': 'wds/NOWHERE'}, 'no folder of images'),
        ({'model': 'vmamba_nothing'}, 'unknown model'),
        ({'model': 'vmamba_nano'}, 'no published weights'),
        ({'scan': 'no_such_order'}, 'no_such_order'),
        ({'dtype': 'int8'}, 'float32, bfloat16, float16'),
        ({'workers': 10**9}, 'workers is 1000000000; allowed are 0 to 1024'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'crop_pct': float('nan')}, 'crop_pct is nan'),
        ({'class_map': 'map.pkl'}, 'neither .txt nor .json'),
        ({'class_map': 'nowhere.txt'}, 'nowhere.txt'),
    ],
)
def test_bad_input(changed, message, digits, model, tmp_path):
    (tmp_path / 'empty').mkdir()
    torch.save(timm.create_model('test_vmamba').state_dict(), tmp_path / 'w.pth')
    places = {'CHECKPOINT': tmp_path / 'w.pth', 'NOWHERE': tmp_path / 'nowhere', 'EMPTY': tmp_path / 'empty'}
    for word, place in places.items():
        changed = {k: v.replace(word, str(place)) if isinstance(v, str) else v for k, v in changed.items()}
    with pytest.raises((ValueError, OSError), match=message):
        validate(options(digits, model, **changed), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_results_of_several_models(digits, model, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('validate', ROOT / 'tools' / 'validate.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    torch.save({'state_dict': timm.create_model('test_vmamba', num_classes=10).state_dict()}, tmp_path / 'w.pth')
    (tmp_path / 'other').mkdir()
    other = timm.create_model('test_vmamba', num_classes=10, pretrained_cfg_overlay={'input_size': (3, 32, 32)})
    save_for_hf(other, str(tmp_path / 'other'), safe_serialization=True)
    out = tmp_path / 'out'
    names = [f'local-dir:{model[0]}', f'local-dir:{tmp_path / "other"}']
    arguments = [str(digits), '--workers', '0', '--batch-size', '16', '--output', str(out)]
    assert tool.main([*arguments, '--model', *names]) == 0
    printed = capsys.readouterr()
    assert printed.out.count('on 45 images') == 2 and 'results.csv' in printed.out
    assert 'img/s' not in printed.err  # no bar where there is no terminal
    rows = list(csv.DictReader((out / 'results.csv').open()))
    assert {row['model'] for row in rows} == set(names)
    assert list(rows[0]) == (
        ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation']
    )
    assert float(rows[0]['top1']) >= float(rows[1]['top1'])
    assert tool.main([*arguments, '--model', *names, '--checkpoint', str(tmp_path / 'w.pth')]) == 2
    assert 'one model' in capsys.readouterr().err
    before = (out / 'results.csv').read_bytes()
    assert gather(out).read_bytes() == before


def shards(digits, folder, broken=False):
    """The digits as two shards, and what timm reads about them."""
    files = sorted((digits / 'val').glob('*/*.png'))
    lengths = []
    for k in range(2):
        with tarfile.open(folder / f'digits-validation-{k}.tar', 'w') as tar:
            lengths.append(len(files[k::2]))
            for i, file in enumerate(files[k::2]):
                data = b'broken' if broken and k == i == 1 else file.read_bytes()
                for suffix, content in (('png', data), ('cls', file.parent.name.encode())):
                    info = tarfile.TarInfo(f'{k}{i:04}.{suffix}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    names = [f'digits-validation-{k}.tar' for k in range(2)]
    split = {'name': 'validation', 'num_samples': len(files), 'filenames': names, 'shard_lengths': lengths}
    (folder / '_info.json').write_text(json.dumps({'splits': {'validation': split}}))
    return f'wds/{folder}'


def test_shards(digits, model, tmp_path, monkeypatch):
    pytest.importorskip('webdataset', reason='an extra of its own')
    data = shards(digits, tmp_path)
    restore = interrupt_after(monkeypatch, 3)
    with pytest.raises(Stop):
        validate(options(data, model), tmp_path / 'out')
    restore()
    result = validate(options(data, model), tmp_path / 'out', resume=True)
    assert (result['top1'], result['top5'], result['images']) == (*expected(digits, model[1]), COUNT)
    data = shards(digits, tmp_path, broken=True)
    with pytest.raises(ValueError, match=r'1 of the 45 images .* were not read: 10001\.png in .*validation-1\.tar'):
        validate(options(data, model), tmp_path / 'broken')


def test_data_set_of_the_hub(digits, model, tmp_path):
    datasets = pytest.importorskip('datasets', reason='an extra of its own')
    folder = tmp_path / 'data'
    loaded = datasets.load_dataset('imagefolder', data_dir=str(digits / 'val'), split='train', cache_dir=str(tmp_path))
    loaded.to_parquet(folder / 'validation.parquet')
    result = validate(options(f'hfds/{folder}', model, data_dir=str(tmp_path)), tmp_path / 'out')
    assert (result['top1'], result['top5'], result['images']) == (*expected(digits, model[1]), COUNT)
