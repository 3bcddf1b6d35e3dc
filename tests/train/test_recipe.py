"""Recipes: types, limits, suggestions, overrides; every file in configs/train."""

from pathlib import Path

import pytest

from visionssm.catalog.models import check_model
from visionssm.train import describe_fields, load_recipe

CONFIGS = Path(__file__).parents[2] / 'configs' / 'train'
BASE = {'model': 'test_vmamba', 'data': 'digits'}


def test_file_then_keys_then_overrides(tmp_path):
    file = tmp_path / 'recipe.yaml'
    file.write_text('model: test_vim\ndata: digits\nlr: 1e-3\nepochs: 7\nwarmup_epochs: 2\nbetas: [0.9, 0.95]\n')
    recipe = load_recipe(file, ['lr=2e-3', 'model_args={scan: hilbert}', 'ema=null'], model='test_vmamba', epochs=None)
    assert (recipe.model, recipe.lr, recipe.epochs, recipe.warmup_epochs) == ('test_vmamba', 2e-3, 7, 2.0)
    assert recipe.model_args == {'scan': 'hilbert'} and recipe.ema is None and recipe.betas == [0.9, 0.95]


@pytest.mark.parametrize(
    'override, message',
    [
        ('learning_rate=1', 'unknown key'),
        ('drop_pth=0.1', 'did you mean drop_path'),
        ('lr=fast', "lr is 'fast'; give a number"),
        ('epochs=1.5', 'epochs is 1.5; give an integer'),
        ('epochs=true', 'epochs is True; give an integer'),
        ('precision=bf61', 'allowed are auto, bf16, fp16, fp32; did you mean bf16'),
        ('mixup=-1', 'mixup is -1.0; allowed are numbers from 0'),
        ('drop_path=2', 'allowed are numbers from 0 to 1'),
        ('scale=[1]', 'give two numbers'),
        ('model=null', 'model is None; give text'),
        ('mesa=1', 'set ema'),
        ('warmup_epochs=300', 'of 300 epochs'),
        ('lr', 'give key=value'),
        ('lr=[', 'no YAML value'),
    ],
)
def test_what_is_wrong_is_said(override, message):
    with pytest.raises(ValueError, match=message.replace('[', r'\[')):
        load_recipe(overrides=[override], **BASE)


def test_files_that_are_no_recipes(tmp_path):
    file = tmp_path / 'recipe.yaml'
    for text, message in (('- a', 'no keys and values'), ('a: [', 'no YAML'), ('modl: x', 'did you mean model')):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(file)
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / 'none.yaml')
    with pytest.raises(ValueError, match='no data is given'):
        load_recipe(model='test_vim')


def test_every_key_is_described():
    rows = describe_fields()
    assert len(rows) > 50 and all(meaning for _, _, meaning in rows)


@pytest.mark.parametrize('file', sorted(CONFIGS.glob('*.yaml')), ids=lambda file: file.stem)
def test_recipes_of_the_repository(file):
    recipe = load_recipe(file, data='digits')
    assert recipe.source and recipe.reported and file.name in recipe.command
    if not recipe.model.startswith('mambaout'):
        check_model(recipe.model)
