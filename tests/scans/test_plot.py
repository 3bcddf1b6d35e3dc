import numpy as np
import pytest

from visionssm.scans import get_scan, plot, plot_scans
from visionssm.scans.plot import Walk, shades

image = pytest.importorskip('matplotlib.image')


def test_picture_is_written(tmp_path):
    file = tmp_path / 'scans.png'
    plot_scans(file, ['hilbert', {'name': 'local', 'window': 2}, 'multiscale', 'raster'], height=4, width=6)
    picture = image.imread(file)
    assert picture.shape[0] > 200 and picture.shape[1] > 1000
    assert picture.std() > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ['scans.png']


def test_all_registered_orders_in_a_vector_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, 'list_scans', lambda: ['raster', 'local'])  # all twenty take seconds
    file = tmp_path / 'scans.svg'
    plot_scans(str(file), height=3, width=2)
    assert 'raster' in (text := file.read_text()) and 'local, pad=none, window=4' in text


def test_walk_of_a_path():
    walk = Walk.of(get_scan('raster').table(2, 3)[0], 3)
    assert walk.points.tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]
    assert walk.jumps.tolist() == [False, False, True, False, False]
    assert walk.progress.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert not Walk.of(get_scan('diagonal').table(4, 4)[0], 4).jumps.any()


def test_shades_go_from_dark_to_light():
    colours = shades(np.linspace(0, 1, 50))
    assert colours.min() >= 0 and colours.max() <= 255 and colours.dtype.kind == 'i'
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()


def test_one_token(tmp_path):
    plot_scans(tmp_path / 'one.png', ['cross'], 1, 1)


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('scans.xyz', {}, r"ends in '.xyz'; allowed are .*\.png"),
        ('scans', {}, "ends in ''"),
        ('scans.png', {'names': ['nope']}, "unknown scan 'nope'"),
        ('scans.png', {'names': []}, 'names is empty'),
        ('scans.png', {'names': ['snake'], 'height': 0}, 'height is 0'),
    ],
)
def test_bad_input_writes_nothing(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        plot_scans(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / 'scans.png'
    file.write_text('old')

    def fail(source, target):
        raise OSError('no space left')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='no space left'):
        plot_scans(file, ['raster'])
    assert file.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1
