import os

# small work: more threads only wait for each other, the longer the busier the cores
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest  # noqa: E402

import visionssm.openmmlab  # noqa: E402, F401  before anything imports mmdet or mmseg

FAMILIES = (
    'test_vmamba',
    'test_msvmamba',
    'test_groupmamba',
    'test_vim',
    'test_plainmamba',
    'test_lbvim',
    'test_a2mamba',
    'test_mambavision',
    'mambaout_femto',
)


@pytest.fixture(params=FAMILIES)
def family(request):
    """A small model of every family."""
    return request.param


@pytest.fixture
def build():
    """Build a backbone by its registered type."""
    from mmengine.registry import MODELS

    def build(name='test_vmamba', **args):
        return MODELS.build({'type': 'visionssm.Backbone', 'model_name': name, **args})

    return build
