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


def test_a_base_is_inherited_and_overridden(tmp_path):
    (tmp_path / 'shared').mkdir()
    (tmp_path / 'shared/first.yaml').write_text('lr: 1.0\nema: 0.9\nmodel_args: {scan: cross}\nbatch_size: 8\n')
    (tmp_path / 'shared/second.yaml').write_text('base: first.yaml\nlr: 2.0\nepochs: 7\n')
    file = tmp_path / 'recipe.yaml'
    file.write_text('base: shared/second.yaml\nmodel: test_vim\ndata: digits\nema: null\nmodel_args: {}\n')
    recipe = load_recipe(file, ['epochs=6'])
    assert (recipe.lr, recipe.ema, recipe.model_args, recipe.batch_size, recipe.epochs) == (2.0, None, {}, 8, 6)


def test_bases_that_cannot_be(tmp_path):
    file, other = tmp_path / 'recipe.yaml', tmp_path / 'other.yaml'
    file.write_text('base: other.yaml\nmodel: test_vim')
    for text, message in (
        ('base: recipe.yaml', 'circle: .*recipe.yaml -> .*other.yaml -> .*recipe.yaml'),
        ('base: ./other.yaml', 'circle: .*recipe.yaml -> .*other.yaml -> .*other.yaml'),
        ('base: [recipe.yaml]', r"base is \['recipe.yaml'\] in .*other.yaml; give the path"),
        ('modl: x', "unknown key 'modl' in .*other.yaml; did you mean model"),
    ):
        other.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(file)
    other.unlink()
    with pytest.raises(FileNotFoundError, match='no file .*other.yaml, the base of .*recipe.yaml'):
        load_recipe(file)


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
        ('repeated_aug=99999999999999999999', 'allowed are numbers from 1 to 1024'),
        ('epochs=99999999999999999999', 'from 1 to 4294967295'),
        ('lr=.inf', 'lr is inf; allowed are numbers from 0 to 1.797'),
        ('scale=[1]', 'give two numbers'),
        ('model=null', 'model is None; give text'),
        ('mesa=1', 'set ema'),
        ('warmup_epochs=300', 'of 300 epochs'),
        ('lr', 'give key=value'),
        ('lr=[', 'is not a YAML value'),
    ],
)
def test_what_is_wrong_is_said(override, message):
    with pytest.raises(ValueError, match=message.replace('[', r'\[')):
        load_recipe(overrides=[override], **BASE)


def test_short_runs_warm_up_shortly():
    """The default warm-up is for longer runs; one that is asked for is kept, or refused."""
    warmups = {epochs: load_recipe(epochs=epochs, **BASE).warmup_epochs for epochs in (1, 2, 5, 6, 300)}
    assert warmups == {1: 0.2, 2: 0.4, 5: 1.0, 6: 5.0, 300: 5.0}
    assert load_recipe(overrides=['warmup_epochs=1'], epochs=2, **BASE).warmup_epochs == 1
    with pytest.raises(ValueError, match='warmup_epochs is 2, of 2 epochs'):
        load_recipe(overrides=['warmup_epochs=2'], epochs=2, **BASE)


def test_files_that_are_no_recipes(tmp_path):
    file = tmp_path / 'recipe.yaml'
    for text, message in (('- a', 'no keys and values'), ('a: [', 'is not YAML'), ('modl: x', 'did you mean model')):
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
