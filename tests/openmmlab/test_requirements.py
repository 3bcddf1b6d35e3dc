"""What is missing or does not go together is said in one line, with the fix."""

import builtins
import importlib.util

import pytest

from visionssm.openmmlab import requirements


@pytest.mark.parametrize(
    ('versions', 'absent', 'message'),
    [
        ({}, 'mmengine', 'needs mmengine: pip install "visionssm.openmmlab."'),
        ({}, 'mmcv', 'needs mmcv: pip install'),
        ({'mmengine': '0.10.7'}, 'pkg_resources', "setuptools 81 removed: pip install 'setuptools<81'"),
        (
            {'mmdet': '3.3.0', 'mmcv': '2.2.0'},
            '',
            'mmdet 3.3.0 takes mmcv from 2.0 to 2.1, not 2.2.0: pip install mmcv',
        ),
        ({'mmsegmentation': '1.2.2', 'onedl-mmcv': '2.3.6'}, '', 'mmsegmentation 1.2.2 takes mmcv .* not 2.3.6'),
    ],
)
def test_one_line_with_the_fix(versions, absent, message, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(requirements, '_version', versions.get)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == absent else find(name))
    with pytest.raises(ImportError, match=message) as caught:
        requirements.check_requirements()
    assert '\n' not in str(caught.value)


def test_opencv_without_its_libraries(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == 'cv2':
            raise ImportError('libGL.so.1: cannot open shared object file')
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(
        ImportError, match='libGL.so.1.*apt install libgl1 libglib2.0-0, or pip uninstall opencv-python'
    ):
        requirements.check_requirements()


@pytest.mark.parametrize('versions', [{}, {'mmdet': '3.3.0', 'mmcv-lite': '2.1.0'}, {'onedl-mmcv': '2.3.6'}])
def test_pairs_that_go_together(versions, monkeypatch):
    monkeypatch.setattr(requirements, '_version', versions.get)
    requirements.check_requirements()
