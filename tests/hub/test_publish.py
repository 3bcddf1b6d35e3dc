"""Pushing to a Hub on the loopback by the real huggingface_hub: what is shown, what is refused, what arrives."""

import base64
import json

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models import save_for_hf

import visionssm  # noqa: F401  registers the models
from visionssm import cli
from visionssm.hub.convert import convert
from visionssm.hub.push import plan

TOKEN = 'hf_abc'


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """A folder with a licence, and the model that it holds."""
    folder = tmp_path_factory.mktemp('converted')
    torch.manual_seed(0)
    model = timm.create_model('test_vmamba', num_classes=3)
    torch.save(model.state_dict(), folder / 'w.pth')
    return convert(folder / 'w.pth', 'test_vmamba', folder / 'out', license='mit').folder, model


@pytest.fixture
def trained(tmp_path):
    """A folder as `visionssm demo` leaves it: more files, and no card."""
    model = timm.create_model('test_vmamba', num_classes=10, pretrained_cfg_overlay={'license': 'apache-2.0'})
    model.pretrained_cfg['notes'] = ('trained by `visionssm demo`',)
    save_for_hf(model, str(tmp_path / 'run'), model_config={'label_names': list('0123456789')}, safe_serialization=True)
    (tmp_path / 'run' / 'samples').mkdir()
    (tmp_path / 'run' / 'samples' / 'digit_0.png').write_bytes(b'png')
    (tmp_path / 'run' / '.secret').write_text('x')
    return tmp_path / 'run'


@pytest.fixture
def uploads(hub, monkeypatch):
    """The Hub takes commits, of who has the token."""
    made = []

    def answer(handler, content, status=200):
        body = json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header('Content-Length', str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def do_POST(handler):
        hub.requests.append(('POST', handler.path))
        body = handler.rfile.read(int(handler.headers['Content-Length']))
        parts = handler.path.strip('/').split('/')
        if handler.path == '/api/validate-yaml':
            return answer(handler, {'errors': [], 'warnings': []})
        if handler.headers.get('Authorization') != f'Bearer {TOKEN}':
            return handler.refuse(401, 'Unauthorized')
        if handler.path == '/api/repos/create':
            made.append(json.loads(body))
            return answer(handler, {'url': f'{hub.url}/{made[-1].get("organization")}/{made[-1]["name"]}'})
        repo = '/'.join(parts[2:4])
        if parts[4] == 'preupload':
            files = [file['path'] for file in json.loads(body)['files']]
            modes = [{'path': path, 'uploadMode': 'regular', 'shouldIgnore': False} for path in files]
            return answer(handler, {'files': modes})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry['key'] == 'file':
                path, data = entry['value']['path'], base64.b64decode(entry['value']['content'])
                hub.put(repo, path, data, lfs=path.endswith('.safetensors'))
        url = f'{hub.url}/{repo}/commit/{"c" * 40}'
        return answer(handler, {'commitUrl': url, 'commitOid': 'c' * 40, 'success': True})

    monkeypatch.setattr(hub.RequestHandlerClass, 'do_POST', do_POST, raising=False)
    return made


def test_look_first(converted, capsys, hub):
    folder, _ = converted
    before = len(hub.requests)
    assert cli.main(['push', str(folder), 'acme/tiny']) == 0
    out = capsys.readouterr().out
    for part in ('README.md', 'config.json', 'model.safetensors', 'acme/tiny', 'test_vmamba', 'mit', 'add --yes'):
        assert part in out
    assert f'{(folder / "model.safetensors").stat().st_size:,}' in out
    assert len(hub.requests) == before


def command(*args):
    """Code that runs the command line in a process whose Hub is the one on the loopback."""
    return f'from visionssm import cli\nprint(cli.main({[str(arg) for arg in args]!r}))'


def test_push_then_load(converted, uploads, hub, run):
    folder, model = converted
    out = run(command('push', folder, 'acme/pushed', '--yes', '--private'), HF_TOKEN=TOKEN)
    assert out[-2].startswith(f'uploaded: {hub.url}/acme/pushed/commit/') and out[-1] == '0'
    assert [(made['name'], made['organization']) for made in uploads] == [('pushed', 'acme')]
    assert uploads[0].get('private') is True or uploads[0].get('visibility') == 'private'
    found = {name: data for (_, name), (data, _) in hub.repos['acme/pushed'].items()}
    card = found.pop('README.md').decode()
    assert found == {name: (folder / name).read_bytes() for name in ('config.json', 'model.safetensors')}
    assert card.count("'hf-hub:acme/pushed'") == 3 and 'local-dir' not in card
    assert (folder / 'README.md').read_text().count("'local-dir:FOLDER'") == 3
    torch.manual_seed(1)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        logits = model.eval()(x)[0].tolist()
    code = """
torch.manual_seed(1)
x = torch.randn(1, 3, 64, 64)
with torch.inference_mode():
    print(timm.create_model('hf-hub:acme/pushed', pretrained=True).eval()(x)[0].tolist())
print(len(timm.create_model('hf-hub:acme/pushed', pretrained=True, features_only=True, in_chans=1)(x[:, :1])))
print(timm.create_model('hf-hub:acme/pushed', pretrained=True, num_classes=6)(x).shape[1])
"""
    printed = [line for line in run(code) if line[0] in '[0123456789']
    assert json.loads(printed[0]) == pytest.approx(logits, abs=1e-6)
    assert printed[1:] == ['4', '6']


def test_without_a_token(converted, uploads, hub, run):
    out = run(command('push', converted[0], 'acme/refused', '--yes'))
    (error,) = (line for line in out if line.startswith('visionssm: '))
    assert '401' in error and out[-1] == '2'
    assert 'acme/refused' not in hub.repos


def test_a_trained_model_gets_a_card(trained):
    (trained / 'checkpoints').mkdir()
    (trained / 'checkpoints' / 'best.pt').write_bytes(b'x')
    made = plan(trained, 'acme/digits')
    assert made.left_out == ('checkpoints/best.pt',)
    assert list(made.files) == ['README.md', 'config.json', 'model.safetensors', 'samples/digit_0.png']
    card = ModelCard(made.files['README.md'].decode())
    assert card.data.license == made.license == 'apache-2.0' and made.warnings == ()
    assert card.data.eval_results is None and 'trained by `visionssm demo`' in card.text
    assert not (trained / 'README.md').exists()


@pytest.mark.parametrize('license', ['unknown', 'contradictory'])
def test_licence_that_is_none(license, trained, capsys):
    config = json.loads((trained / 'config.json').read_text())
    config['pretrained_cfg']['license'] = license
    (trained / 'config.json').write_text(json.dumps(config))
    assert cli.main(['push', str(trained), 'acme/digits', '--yes']) == 2
    assert f'{license}: only publish them if you have the right to' in capsys.readouterr().err
    assert cli.main(['push', str(trained), 'acme/digits']) == 0
    assert 'would be refused' in capsys.readouterr().out
    assert cli.main(['push', str(trained), 'acme/digits', '--i-have-the-right']) == 0
    assert 'would be refused' not in capsys.readouterr().out


def test_a_card_can_not_launder_a_licence(trained):
    config = json.loads((trained / 'config.json').read_text())
    config['pretrained_cfg']['license'] = 'unknown'
    (trained / 'config.json').write_text(json.dumps(config))
    (trained / 'README.md').write_text('---\nlicense: mit\n---\n# Mine\n')
    assert plan(trained, 'acme/digits').warnings


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('model.safetensors', None, 'has no model.safetensors'),
        ('config.json', None, 'has no config.json'),
        ('config.json', b'{', 'not valid JSON'),
        (
            'config.json',
            b'{"architecture": "resnet50", "num_classes": 2, "pretrained_cfg": {"input_size": 1}}',
            'unknown',
        ),
        ('config.json', b'{"architecture": [], "num_classes": 2, "pretrained_cfg": {"input_size": 1}}', 'unknown'),
        ('model.safetensors', b'hello', 'not a complete safetensors'),
        ('README.md', b'---\nlicense: [\n---\n', 'not valid'),
    ],
)
def test_folder_that_is_not_one(name, content, message, trained, capsys):
    if content is None:
        (trained / name).unlink()
    else:
        (trained / name).write_bytes(content)
    assert cli.main(['push', str(trained), 'acme/digits']) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_weights_of_another_model(trained):
    config = json.loads((trained / 'config.json').read_text())
    config['num_classes'] = 11
    (trained / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'2 tensors differ, the first is head\.fc\.bias'):
        plan(trained, 'acme/digits')


@pytest.mark.parametrize('repo_id', ['digits', 'acme/di gits', 'a/b/c', '', '../x'])
def test_names_of_repositories(repo_id, trained):
    with pytest.raises(ValueError, match='repository name'):
        plan(trained, repo_id)


def test_no_folder(tmp_path, capsys):
    assert cli.main(['push', str(tmp_path / 'nowhere'), 'acme/digits']) == 2
    assert 'no folder at' in capsys.readouterr().err
