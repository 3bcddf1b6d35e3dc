"""The configs that come with the package are found by name; every published classifier has a recipe."""

import sys
from pathlib import Path

import pytest
import yaml

from visionssm.catalog import configs as _configs
from visionssm.catalog.models import list_rows
from visionssm.cli import main
from visionssm.weights.published import family_of, model_facts

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tools'))
import make_configs  # noqa: E402

RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / 'configs/train').glob('*.yaml')}
# models of the papers, some without known results: neither timm's own variants nor those that nobody trained
PUBLISHED = {
    row['model'].partition('.')[0]
    for row in list_rows()
    if '_rw' not in row['model']
    and (row['top-1 reported'] or row['model'].startswith(('lbvim', 'shufflemamba')))
    and row['model'] != 'lbvim_nano'
}


def test_found_by_name_path_and_pattern():
    name = 'mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco'
    path = ROOT / f'configs/mmdet/vmamba/{name}.py'
    assert _configs.find_config(name) == _configs.find_config(f'{name}.py') == _configs.find_config(path) == path
    assert _configs.list_configs(name) == _configs.list_configs('mmdet/*s1l8*1x*') == [path]
    assert _configs.find_config('vim_tiny_patch16_224').suffix == '.yaml'
    assert not any('_base_' in path.parts for path in _configs.list_configs())


@pytest.mark.parametrize('call', [_configs.find_config, _configs.list_configs])
def test_the_closest_are_named(call):
    with pytest.raises(ValueError, match='closest are .*mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco'):
        call('mask-rcnn_vmamba-tiny-s1l8_1x_coco')


def test_a_wheel_keeps_them_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(_configs, '_PACKAGE', tmp_path)
    with pytest.raises(FileNotFoundError, match='no configs'):
        _configs.configs_root()
    (tmp_path / '.mim/configs/train').mkdir(parents=True)
    assert _configs.configs_root() == tmp_path / '.mim/configs'


def test_command(capsys):
    assert main(['configs', 'upernet_vim-small']) == 0
    assert [Path(line).stem for line in capsys.readouterr().out.split()] == [
        'upernet_vim-small_160k_ade20k-512x512',
        'upernet_vim-small_60k_ade20k-512x512',
    ]
    assert main(['configs', 'nothing_like_this']) == 2
    assert main(['train', '--config', 'vim_tny_patch16_224']) == 2
    assert 'closest are vim_tiny_patch16_224' in capsys.readouterr().err


def test_every_published_classifier_has_a_recipe():
    """Of the families whose settings are known: those that have recipes at all; others may, if a result is known."""
    families = {family_of(name).key for name in set(RECIPES) - {'digits'}}
    published = {name for name in PUBLISHED if family_of(name).key in families}
    assert published <= set(RECIPES)
    assert all(model_facts(name).top1 for name in set(RECIPES) - {'digits'} - published)


@pytest.mark.parametrize('name', sorted(set(RECIPES) - {'digits'}))
def test_recipe_is_of_its_model_and_quotes_its_result(name):
    recipe = RECIPES[name]
    assert recipe['model'] == name
    assert f'--config configs/train/{name}.yaml' in recipe['command']
    path = ROOT / f'configs/train/{name}.yaml'
    assert make_configs.recipe(path) == path.read_text()
