"""One way to ask for a backend: argument, context, environment, automatic; for all ops or for one."""

import pytest
import torch

from visionssm.catalog.machine import backends
from visionssm.ops import BackendUnavailableError, available_backends, linear, selective_scan, use_backend
from visionssm.ops.dispatch import BACKENDS, OPS, backend_names, parse_request, requested_backend


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv('VISIONSSM_BACKEND', raising=False)
    monkeypatch.delenv('VISIONSSM_NEIGHBORHOOD_BACKEND', raising=False)


def asked():
    return [requested_backend(op) for op in OPS]


def test_a_bare_name_goes_for_every_op_that_has_it(monkeypatch):
    assert OPS == ('scan', 'neighborhood', 'linear') and asked() == ['', '', '']
    cases = (('torch', ['torch'] * 3), ('cpu', ['cpu', 'cpu', '']), ('linear=onednn', ['', '', 'onednn']))
    for name, expected in cases:
        with use_backend(name):
            assert asked() == expected
        monkeypatch.setenv('VISIONSSM_BACKEND', name)
        assert asked() == expected
        monkeypatch.delenv('VISIONSSM_BACKEND')
    monkeypatch.setenv('VISIONSSM_BACKEND', 'torch, scan=cpu')
    assert asked() == ['cpu', 'torch', 'torch']


def test_the_nearest_request_counts(monkeypatch):
    monkeypatch.setenv('VISIONSSM_BACKEND', 'torch')
    monkeypatch.setenv('VISIONSSM_NEIGHBORHOOD_BACKEND', 'natten')
    assert asked() == ['torch', 'natten', 'torch']
    with use_backend('neighborhood=torch'), use_backend('scan=reference'):
        assert asked() == ['reference', 'torch', 'torch']
        assert requested_backend('scan', 'cpu') == 'cpu'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('cuda', "unknown backend 'cuda'; choose from triton, cpu, torch, reference, natten, onednn"),
        ('linear=cpu', "unknown backend 'cpu' of linear; choose from onednn, torch"),
        ('attention=torch', "unknown op 'attention'; choose from scan, neighborhood, linear"),
        ('scan=cpu,scan=torch', 'both cpu and torch are asked for scan'),
    ],
)
def test_unknown_names_list_the_choices(text, message, monkeypatch):
    with pytest.raises(ValueError, match=message), use_backend(text):
        pass
    monkeypatch.setenv('VISIONSSM_BACKEND', text)
    with pytest.raises(ValueError, match=f'VISIONSSM_BACKEND: {message}'):
        requested_backend('scan')


def test_other_wrong_names(monkeypatch):
    with pytest.raises(ValueError, match='no backend named'), use_backend(''):
        pass
    with pytest.raises(ValueError, match='choose from triton, cpu, torch, reference'):
        requested_backend('scan', 'onednn')
    with pytest.raises(ValueError, match='choose from scan, neighborhood, linear'):
        available_backends(op='conv')
    monkeypatch.setenv('VISIONSSM_NEIGHBORHOOD_BACKEND', 'flash')
    with pytest.raises(ValueError, match='VISIONSSM_NEIGHBORHOOD_BACKEND.*choose from natten, cpu, torch'):
        requested_backend('neighborhood')
    assert parse_request('', 'test') == {}


def test_what_was_asked_for_runs_or_raises():
    x = torch.randn(2, 3, dtype=torch.float64)
    with use_backend('linear=onednn'), pytest.raises(BackendUnavailableError, match='cannot run this linear.*fp32'):
        linear(x, torch.randn(4, 3, dtype=torch.float64))
    u = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    with use_backend('cpu'), pytest.raises(BackendUnavailableError, match='cannot run this scan.*fp32'):
        selective_scan(u[:, :, 0], u, -torch.ones(1, 1, 1, dtype=torch.float64), u, u)


def test_machine_lists_every_op_and_backend():
    rows = backends()
    assert {(op, name) for op, _, name, _ in rows} == {(backend.op, backend.name) for backend in BACKENDS}
    for op in OPS:
        assert sum(text == 'used' for row_op, device, _, text in rows if (row_op, device) == (op, 'cpu')) == 1
        assert list(available_backends(op=op)) == backend_names(op)
    with use_backend('scan=torch'):
        assert ('scan', 'cpu', 'torch', 'used, as asked for') in backends()
