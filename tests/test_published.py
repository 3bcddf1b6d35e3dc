"""The records of what is published: complete, and what the registry and the command line are made from."""

import re

import pytest
from timm.models import get_pretrained_cfg, list_models

import visionssm  # noqa: F401  registers the models
from visionssm.catalog.models import model_cost
from visionssm.weights.published import (
    FAMILIES,
    add_family,
    container_of,
    family_of,
    find_published,
    get_downstream,
    model_facts,
    published_files,
)
from visionssm.weights.records import UNCLEAR

OURS = [family for family in FAMILIES.values() if not family.borrowed]
FILES = list(published_files())


@pytest.mark.parametrize('key', FAMILIES)
def test_counts_are_those_of_the_models(key):
    """So that a list need not build them."""
    family = FAMILIES[key]
    counted = {name: model_cost(name) for name in family.models}
    assert {name: (facts.params, facts.macs) for name, facts in family.models.items()} == counted


def test_every_model_is_recorded():
    for family in OURS:
        assert set(family.models) == set(list_models(module=family.key))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_record(file):
    family = family_of(file.model)
    assert file.model in family.models and file.origin_url == family.repository
    assert bool(file.tag) != bool(file.method) and (file.task == 'classification') == bool(file.tag)
    assert file.where.startswith(('hf-hub:', 'https://')) and file.by_hand == (not file.download_url)
    assert bool(file.repo) == bool(file.filename) and not (file.repo and file.url)
    assert 'resolve/' not in file.url
    assert re.fullmatch('|[0-9a-f]{40}', file.revision) and re.fullmatch('|[0-9a-f]{64}', file.sha256)
    assert (file.license in UNCLEAR) == bool(file.doubt)
    assert file.metrics or family.key == 'lbvim'
    assert all(0 < value < 100 for value in file.metrics.values())


def test_tags_are_made_of_the_records():
    for file in FILES:
        if not file.tag:
            continue
        family, config = family_of(file.model), get_pretrained_cfg(file.name)
        assert (config.hf_hub_id, config.hf_hub_filename) == (file.hf_hub_id, file.hf_hub_filename)
        assert (config.url or '') == file.url and config.has_weights != file.by_hand
        assert (config.license, config.origin_url, config.notes) == (file.license, file.origin_url, file.remarks)
        assert (config.paper_ids, config.paper_name) == (f'arXiv:{family.arxiv}', family.paper)


def test_how_many():
    """As the specs of the families count them."""
    classifiers = {'vmamba': 9, 'vim': 5, 'msvmamba': 6, 'groupmamba': 3, 'plainmamba': 3, 'lbvim': 4, 'a2mamba': 5}
    classifiers |= {'mambavision': 11, 'mobilemamba': 12, 'efficientvmamba': 3, 'vcmamba': 3, 'vssd': 7, 'mambareg': 3}
    classifiers |= {'spatialmamba': 3, 'videomamba': 10}
    classifiers |= {'localvim': 2, 'localvmamba': 1}
    others = {'vmamba': 20, 'msvmamba': 6, 'plainmamba': 9, 'mambavision': 7, 'vssd': 8}
    for key, count in classifiers.items():
        files = FAMILIES[key].files
        assert (len(files), len([file for file in files if file.tag])) == (count + others.get(key, 0), count)
    assert len({file.name for file in FILES}) == len(FILES)


def test_lookups():
    assert find_published('vmamba_tiny_s1l8').name == 'vmamba_tiny_s1l8.in1k'
    assert find_published('vmamba_nano') is None and model_facts('resnet50') is None and family_of('resnet50') is None
    assert family_of('test_msvmambav3').key == 'msvmamba' and family_of('mambaout_new_rw.x').key == 'mambaout'
    assert get_downstream('vmamba_tiny_s1l8.mask_rcnn_1x_coco').reported == 'box AP 47.3, mask AP 42.7'
    with pytest.raises(ValueError, match='closest are vmamba_tiny_s1l8.mask_rcnn_1x_coco'):
        get_downstream('vmamba_tiny_s1l8.mask_rcnn_1x')
    containers = {
        name: container_of(name) for name in ('msvmambav3_base', 'test_msvmambav3', 'msvmamba_nano', 'resnet50')
    }
    assert list(containers.values()) == ['model_ema', 'model_ema', 'model', '']
    with pytest.raises(ValueError, match="the key 'vim' is taken|vim_nano"):
        add_family(FAMILIES['vim'])
