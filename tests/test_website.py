"""The documentation: every message has its advice, every model its row, every link its target."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from visionssm.apps.classify import load_classifier
from visionssm.catalog.models import check_model, model_names
from visionssm.models import load_checkpoint
from visionssm.ops import selective_scan, use_backend
from visionssm.scans import get_scan, list_scans, register_scan, registry
from visionssm.train import load_recipe
from visionssm.weights.published import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tools'))
import check_site  # noqa: E402
import client_versions  # noqa: E402
from website import choosing, errors, reference, walks  # noqa: E402

TROUBLESHOOTING = (ROOT / 'docs/troubleshooting.md').read_text()


def test_every_message_is_under_some_advice():
    sections = errors.assign(TROUBLESHOOTING)
    assert sum(map(len, sections.values())) == len(errors.messages()) > 300
    for part in TROUBLESHOOTING.split('<!-- errors:')[:-1]:  # what stands above the list says what to do
        assert not part.rstrip().splitlines()[-1].startswith('#')


def refused_scan(**kwargs):
    x = torch.zeros(1, 4, 1, 2)
    return selective_scan(**{'u': x, 'delta': x, 'A': torch.zeros(1, 2, 3), 'B': x, 'C': x, **kwargs})


@pytest.mark.parametrize(
    'call',
    [
        lambda: check_model('vmamba_tini'),
        lambda: get_scan('hilbrt'),
        lambda: get_scan({'name': 'local', 'window': 'x'}),
        lambda: get_scan('spiral').table(0, 3),
        lambda: refused_scan(),
        lambda: refused_scan(u=torch.zeros(1, 4, dtype=torch.complex64)),
        lambda: use_backend('cuda').__enter__(),
        lambda: timm.create_model('test_vmamba', scan='multihead').set_scan('raster'),
        lambda: timm.create_model('test_vssd', scan='spiral'),
        lambda: timm.create_model('test_vim')(torch.zeros(1, 3, 8, 8)),
        lambda: load_checkpoint('nowhere.pth'),
        lambda: load_classifier('test_vmamba'),
        lambda: load_recipe(None, {'model': 'test_vmamba', 'lr': -1}),
    ],
)
def test_messages_read_as_listed(call):
    with pytest.raises(Exception) as caught:
        call()
    listed = (
        ''.join('.*' if part == errors.GAP else re.escape(part) for part in re.split(f'({errors.GAP})', message.text))
        for message in errors.messages()
        if message.kind == type(caught.value).__name__ and re.search(r'\w\w', message.text.split(errors.GAP)[0] or 'xx')
    )
    assert any(re.fullmatch(pattern, str(caught.value), re.S) for pattern in listed), caught.value


def test_a_message_without_advice_is_an_error():
    with pytest.raises(ValueError, match='has no section for'):
        errors.assign('<!-- errors: ^models/ -->')
    with pytest.raises(ValueError, match='a section without messages: ^nowhere'.replace('^', r'\^')):
        errors.assign(TROUBLESHOOTING + '\n<!-- errors: ^nowhere -->\n')


def test_lines_for_other_programs_are_run():
    page = (ROOT / 'docs/clients.md').read_text()
    sections = re.findall(r'^## ([\w-]+)(.*?)(?=^## |\Z)', page, re.M | re.S)
    shown = {(name, str(i)) for name, text in sections for i in range(text.count('\n```python'))}
    tests = ''.join(file.read_text() for file in sorted((ROOT / 'tests').rglob('test_*.py')))
    assert shown == set(re.findall(r"\blines\('([\w-]+)', (\d)", tests)) and len(shown) > 9


def test_versions_of_other_programs():
    assert client_versions.update('## pytest 0.1, nonesuch 2.0: and\n\npytest 3.1\n') == (
        f'## pytest {pytest.__version__}, nonesuch 2.0: and\n\npytest 3.1\n'
    )


def test_all_models_can_be_chosen():
    rows = choosing.table_of_models()
    assert [name for name in model_names() if f'[`{name}`]' not in rows] == []
    points = choosing.points()
    assert {point.family for point in points} >= {'vmamba', 'vim', 'mambaout'}
    plots = choosing.plots()
    assert all(plots.count(f'<title>{point.name}: {point.top1:.1f} % reported') >= 1 for point in points)
    assert not re.search(r'\b(nan|inf)\b', plots)
    licences = choosing.licences()
    assert [key for key in FAMILIES if f'cards/{key}.md' not in licences] == []


def test_a_new_order_is_on_its_pages(monkeypatch):
    monkeypatch.setattr(registry, '_STRATEGIES', dict(registry._STRATEGIES))
    register_scan('rows_up', meaning='Rows from below')(lambda height, width: np.arange(height * width)[::-1])
    shown = list(walks.orders())
    assert list(dict.fromkeys(order.name for order in shown)) == list_scans() and shown[-1].name == 'rows_up'
    assert len(set(shown)) == len(shown) and len({order.describe() for order in shown if order.directions == 4}) > 10
    assert '| `rows_up` | 4, 2, 1 |' in reference.scan_orders()


def test_ticks_and_scales():
    assert list(choosing._ticks(0.3, 30)) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert len({(colour, shape) for shape in choosing._SHAPES for colour in choosing._COLOURS}) >= len(FAMILIES)
    assert np.isfinite([point.params for point in choosing.points()]).all()


def test_links_are_checked(tmp_path, capsys):
    (tmp_path / 'index.html').write_text('<a href="other.html#here">x</a><a href="https://example.org">y</a>')
    (tmp_path / 'other.html').write_text('<p id="here"></p><a href="index.html">x</a>')
    assert check_site.main([str(tmp_path)]) == 0
    (tmp_path / 'other.html').write_text(
        '<p id="there"></p><a href="gone.html">x</a><script src="https://example.org/x.js"></script>'
    )
    assert check_site.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    for problem in ('has no such anchor', 'gone.html leads nowhere', 'loads https://example.org/x.js from elsewhere'):
        assert problem in said
