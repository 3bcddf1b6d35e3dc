"""Order, positions, processes and loader processes; images that cannot be read; folders and streams."""

import io
import json
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from visionssm.train import load_recipe
from visionssm.train.data import BadImagesError, ImageConfig, ImageData, TimmSource, open_source
from visionssm.train.parallel import Processes

CPU = torch.device('cpu')
IMAGE = ImageConfig((3, 16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 'bilinear', 1.0)
AUGMENTED = ['color_jitter=0.4', 'auto_augment=rand-m9-mstd0.5-inc1', 'scale=[0.5, 1]']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two classes of twelve training and five evaluation images of different sizes."""
    root = tmp_path_factory.mktemp('images')
    generator = np.random.default_rng(0)
    for split, count in (('train', 12), ('validation', 5)):
        for name in ('cat', 'dog'):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{i:02d}.png')
    return root


def make(folder, *extra, rank=0, count=1, say=lambda line: None, image=IMAGE):
    keys = ['batch_size=8', 'workers=0', *AUGMENTED, *extra]
    recipe = load_recipe(None, keys, model='test_vmamba', data=str(folder))
    train = open_source(recipe, recipe.train_split, True, 3)
    return ImageData(recipe, train, image, 2, Processes(rank, count, CPU), say)


def batches(data, epoch=0, first=0):
    return list(data.train_batches(epoch, first))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def test_folder_has_classes_and_every_image_once(folder):
    data = make(folder, 'batch_size=4', *['hflip=0', 'auto_augment=null', 'color_jitter=0'])
    assert data.classes == ['cat', 'dog'] and data.images == 24 and data.updates == 6
    assert sorted(data.order(0)) == list(range(24)) and not np.array_equal(data.order(0), data.order(1))
    labels = torch.cat([labels for _, labels in batches(data)])
    assert labels.bincount().tolist() == [12, 12]
    images, labels = zip(*data.eval_batches(), strict=True)
    assert torch.cat(labels).tolist() == [0] * 5 + [1] * 5
    assert (
        torch.cat(images).shape == (10, 3, 16, 16)
        and -2.01 < float(torch.cat(images).min()) < float(torch.cat(images).max()) < 2.01
    )


def test_any_position_with_any_number_of_loaders_gives_the_same(folder):
    whole = batches(make(folder), epoch=3)
    assert same(whole, batches(make(folder, 'workers=2'), epoch=3))
    assert same(whole[2:], batches(make(folder, 'workers=1'), epoch=3, first=2))
    assert not same(whole, batches(make(folder), epoch=4)) and not same(whole, batches(make(folder, 'seed=1'), epoch=3))


def test_loading_leaves_the_generators_of_training_alone(folder):
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5), np.random.seed(5)
    batches(make(folder))
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])


def test_processes_share_batches_and_evaluation(folder):
    (alone, *_), parts = batches(make(folder)), [batches(make(folder, rank=r, count=2))[0] for r in (0, 1)]
    together = torch.empty_like(alone[0])
    together[0::2], together[1::2] = parts[0][0], parts[1][0]
    assert torch.equal(together, alone[0])
    small = batches(make(folder, 'micro_batch=2'))
    assert torch.equal(torch.cat([images for images, _ in small[:4]]), alone[0])
    counted = [
        torch.cat([y for _, y in make(folder, 'batch_size=9', rank=r, count=3).eval_batches()]) for r in range(3)
    ]
    assert [len(y) for y in counted] == [4, 4, 4] and sum(int((y >= 0).sum()) for y in counted) == 10


def test_repeated_augmentation_and_samples_per_epoch(folder):
    data = make(folder, 'repeated_aug=3')
    order = data.order(0)
    assert len(order) == 24 and (np.unique(order, return_counts=True)[1] == 3).all()
    images = batches(data)[0][0]
    assert not torch.equal(images[0], images[1])
    assert len(make(folder, 'train_samples=10').order(0)) == 8


def test_evaluation_has_a_folder_and_the_classes_of_training(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'images')
    shutil.rmtree(tmp_path / 'images' / 'validation' / 'cat')  # dogs stay class 1
    labels = torch.cat([labels for _, labels in make(tmp_path / 'images').eval_batches()])
    assert labels.tolist() == [1] * 5
    shutil.rmtree(tmp_path / 'images' / 'validation')
    with pytest.raises(ValueError, match="has no folder for 'validation'"):
        make(tmp_path / 'images')
    assert make(tmp_path / 'images', 'val_split=null').images == 24
    with pytest.raises(ValueError, match="has no folder for 'x', only for train"):
        make(tmp_path / 'images', 'train_split=x', 'val_split=null')
    (tmp_path / 'images' / 'train' / 'emu').mkdir()
    shutil.copy(tmp_path / 'images' / 'train' / 'cat' / '00.png', tmp_path / 'images' / 'train' / 'emu')
    with pytest.raises(ValueError, match='the data have 3 classes, and the model has 2'):
        make(tmp_path / 'images', 'val_split=null')


def test_a_share_of_every_class_is_held_out(folder):
    data = make(folder, 'held_out=0.25')
    names = [[part.name(i) for i in range(len(part))] for part in (data.train, data.val)]
    assert [len(part) for part in names] == [18, 6] and len({*names[0], *names[1]}) == 24
    assert [sum(f'/train/{kind}/' in name for name in names[1]) for kind in ('cat', 'dog')] == [3, 3]
    assert [data.val.read(i)[1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    again = make(folder, 'held_out=0.25', 'seed=1')  # a training seed changes the order, not the split
    assert [again.val.name(i) for i in range(6)] == names[1]
    assert sum(len(labels) for _, labels in data.eval_batches()) == 6
    assert sum(len(labels) for _, labels in data.eval_batches(training=True)) == 18
    with pytest.raises(ValueError, match='class cat has 12 images; held_out 0.01 of them leaves no split'):
        make(folder, 'held_out=0.01')
    with pytest.raises(ValueError, match='held_out needs a folder of images'):
        open_source(load_recipe(None, ['held_out=0.2'], model='test_vmamba', data='digits'), 'train', True, 1)


def test_evaluation_crops_as_the_model_asks(folder):
    """All of an image squeezed into the square, where the model's configuration says so, instead of its middle."""
    (cropped, *_), (squashed, *_) = (
        next(iter(make(folder, image=image).eval_batches())) for image in (IMAGE, IMAGE._replace(crop_mode='squash'))
    )
    assert cropped.shape == squashed.shape and not torch.equal(cropped, squashed)
    with Image.open(sorted((folder / 'validation' / 'cat').iterdir())[0]) as picture:
        expected = torch.from_numpy(np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)))
    expected = (expected.permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(squashed[0].float(), expected.float(), atol=1 / 32, rtol=0)


def test_batches_that_do_not_fit(folder):
    for extra, message in (
        (['batch_size=25'], 'there are 24 training images'),
        (['micro_batch=3'], 'is not a multiple of 3'),
        (['batch_size=3', 'mixup=1'], 'even batches'),
        (['train_split=nothing', 'data=/no/such'], 'there is no such folder'),
        (['data=wds/shards'], 'set data_dir'),
        (['auto_augment=rnd-m9'], "auto_augment 'rnd-m9' cannot be made: Unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            make(folder, *extra)


@pytest.fixture
def damaged(folder, tmp_path):
    """The folder with one file cut off."""
    root = tmp_path / 'damaged'
    shutil.copytree(folder, root)
    file = root / 'train' / 'dog' / '03.png'
    file.write_bytes(file.read_bytes()[:100])
    return root, file


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_images_are_counted_and_named_up_to_a_limit(damaged, workers):
    root, file = damaged
    with pytest.raises(BadImagesError, match=rf'1 unreadable images, and max_bad_images is 0: .*{file.name}'):
        batches(make(root, f'workers={workers}'))
    lines = []
    data = make(root, f'workers={workers}', 'max_bad_images=1', say=lines.append)
    assert sum(len(labels) for _, labels in batches(data) + batches(data, epoch=1)) == 48
    assert len(lines) == 1 and str(file) in lines[0] and data.bad[0].startswith(str(file))


def test_an_unreadable_image_of_the_evaluation_stops(folder, damaged):
    root, _ = damaged
    (root / 'validation' / 'cat' / '00.png').write_bytes(b'')
    with pytest.raises(BadImagesError, match='evaluation'):
        list(make(root).eval_batches())


def test_a_dead_loader_process_is_replaced(folder, tmp_path, monkeypatch):
    # how often torch looks whether its loader processes live; 5 s
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, '__defaults__', (0.2,))
    expected = batches(make(folder))
    marker, read = tmp_path / 'died', TimmSource.read

    def dying(self, index):
        if index == 7 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(TimmSource, 'read', dying)
    lines = []
    assert same(batches(make(folder, 'workers=1', say=lines.append)), expected)
    assert len(lines) == 1 and 'loader process died' in lines[0]
    marker.unlink()
    monkeypatch.setattr(type(marker), 'exists', lambda self: False)  # dies every time
    with pytest.raises((RuntimeError, EOFError, OSError)):
        batches(make(folder, 'workers=1', say=lines.append))
    assert len(lines) == 4


def test_webdataset_streams(folder, tmp_path):
    """Shards go by seed and epoch; the middle of an epoch is reached by reading what comes before."""
    pytest.importorskip('webdataset')
    source = TimmSource(load_recipe(None, [], model='test_vmamba', data=str(folder)), 'train', 3)
    for shard in range(4):
        with tarfile.open(tmp_path / f'data-train-{shard}.tar', 'w') as archive:
            for i in range(shard * 6, shard * 6 + 6):
                image, label = source.read(i)
                stream = io.BytesIO()
                image.save(stream, 'png')
                for suffix, content in (('png', stream.getvalue()), ('cls', str(label).encode())):
                    info = tarfile.TarInfo(f'{i:03d}.{suffix}')
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    splits = {
        'train': {
            'name': 'train',
            'filenames': [f'data-train-{i}.tar' for i in range(4)],
            'shard_lengths': [6] * 4,
            'num_samples': 24,
        }
    }
    (tmp_path / '_info.json').write_text(json.dumps({'splits': splits}))
    keys = ['data_dir=' + str(tmp_path), 'data=wds/', 'val_split=null', 'workers=1']
    whole = batches(make(tmp_path, *keys), epoch=1)
    assert len(whole) == 3 and whole[0][0].shape == (8, 3, 16, 16)
    assert same(whole, batches(make(tmp_path, *keys), epoch=1))
    assert same(whole[1:], batches(make(tmp_path, *keys), epoch=1, first=1))
    assert not same(whole, batches(make(tmp_path, *keys), epoch=2))
