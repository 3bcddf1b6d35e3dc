"""Downloads by the real huggingface_hub and timm, from a Hub on the loopback: what loads, what is refused, removed."""

import hashlib
import os
import signal
from pathlib import Path

import pytest

FILE = 'w.pth'
COMMIT = 'c' * 40
ROUTES = ('hub', 'url')
# what HF_HUB_OFFLINE=1 sets at the start of a process (test_weights.py starts one)
OFFLINE = 'from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True\n'


class Route:
    """One file on the server, by one of the two ways to it."""

    def __init__(self, kind, name, hub, homes, data, **options):
        self.kind, self.name, self.hub, self.data = kind, f'{name}.pth', hub, data
        if kind == 'hub':
            self.repo = f'acme/{name}'
            hub.put(self.repo, self.name, data, **options)
            self.overlay = f'hf_hub_id={self.repo!r}, hf_hub_filename={self.name!r}'
            self.folder = Path(homes['HF_HOME'], 'hub', f'models--acme--{name}')
            self.file = self.folder / 'snapshots' / COMMIT / self.name
        else:
            self.overlay = f'url={hub.put_plain(self.name, data)!r}'
            self.folder = Path(homes['TORCH_HOME'], 'hub', 'checkpoints')
            self.file = self.folder / self.name
        self.record = self.file.with_name(f'{self.name}.sha256')
        self.create = f'create({self.overlay})'

    def leftovers(self):
        """Files with contents of it, under whatever name, but for the record."""
        if self.kind == 'url':
            return [path for path in self.folder.glob(f'{self.name}*') if path != self.record]
        blobs = [path for path in self.folder.glob('blobs/*') if path.suffix != '.incomplete']  # of no name yet
        return [*self.folder.glob('snapshots/*/*.pth'), *blobs]


@pytest.fixture
def route(hub, homes, weights):
    """Make a route by (kind, name); `expected` is what loading it prints."""

    def route(kind, name, seed=0, data=None, **options):
        content, digest = weights(seed)
        made = Route(kind, f'{name}-{kind}', hub, homes, data or content, **options)
        made.expected = f'ok {digest}'
        return made

    return route


@pytest.mark.parametrize('kind', ROUTES)
def test_fresh_then_cached(kind, hub, run, route):
    at = route(kind, 'fresh')
    assert run(at.create) == [at.expected]
    assert hub.count(at.name, 'GET') == 1
    digest = hashlib.sha256(at.data).hexdigest()
    assert at.record.read_text().splitlines()[1] == f'{digest}  {at.name}'
    before = len(hub.requests)
    assert run(at.create) == [at.expected]
    assert len(hub.requests) == before  # not one
    warnings = run('import huggingface_hub; print(huggingface_hub.scan_cache_dir().warnings)')
    assert warnings == ['[]']  # our records do not disturb its tools


def test_pinned(hub, run, weights):
    """A revision is what is loaded, whatever the branch holds; once it is cached, nothing is asked."""
    (old, digest), (new, _) = weights(1), weights(2)
    hub.put('acme/pinned', FILE, old, commit='a' * 40)
    hub.put('acme/pinned', FILE, new, commit='b' * 40)
    code = f'create(hf_hub_id="acme/pinned@{"a" * 40}", hf_hub_filename={FILE!r})'
    assert run(code) == [f'ok {digest}']
    before = len(hub.requests)
    assert run(code) == [f'ok {digest}'] and len(hub.requests) == before
    assert 'no such revision' in run(code.replace('@aaaa', '@dddd'))[0]


def test_branch_stays_for_tags_and_moves_for_names(hub, run, weights, tmp_path):
    """A tag stays with what it once loaded; `hf-hub:` follows the branch, as people who push to it expect."""
    (old, before), (new, after) = weights(1), weights(2)
    size = '"pretrained_cfg": {"input_size": [3, 96, 96], "fixed_input_size": true}'
    config = f'{{"architecture": "test_vim", "num_classes": 1000, {size}}}'.encode()
    for commit, data in (('a' * 40, old), ('b' * 40, new)):
        hub.put('acme/moving', 'config.json', config, commit=commit)
        hub.put('acme/moving', 'pytorch_model.bin', data, commit=commit)
        if commit[0] == 'a':
            assert run("create('hf-hub:acme/moving')") == [f'ok {before}']
    tag = "create(hf_hub_id='acme/moving', hf_hub_filename='pytorch_model.bin')"
    assert run(tag) == [f'ok {before}']
    assert run("create('hf-hub:acme/moving')") == [f'ok {after}']
    pinned = f"create('hf-hub:acme/moving@{'a' * 40}')"
    assert run(pinned) == [f'ok {before}']
    asked = len(hub.requests)
    assert run(pinned) == [f'ok {before}'] and len(hub.requests) == asked
    assert run(f"{OFFLINE}create('hf-hub:acme/moving')") == [f'ok {after}']
    assert run(tag.replace("'acme/moving'", f"'acme/moving', cache_dir={str(tmp_path)!r}")) == [f'ok {after}']
    assert list(tmp_path.glob('models--acme--moving/blobs/*'))


def test_saved_model(hub, homes, run, tmp_path):
    """A folder that `save_for_hf` wrote, as it is and on the Hub."""
    folder = tmp_path / 'model'
    save = f"""
model = timm.create_model('test_vim', num_classes=7)
timm.models.save_for_hf(model, {str(folder)!r}, safe_serialization=True)
print('ok', digest(model))
create('local-dir:{folder}')
"""
    expected, local = run(save)
    assert local == expected
    for file in folder.iterdir():
        hub.put('acme/saved', file.name, file.read_bytes())
    assert run("create('hf-hub:acme/saved')") == [expected]


def test_offline(hub, run, route):
    """What is cached loads, what is not says so, and nothing is requested."""
    at, other, plain = route('hub', 'offline'), route('hub', 'absent'), route('url', 'absent')
    assert run(at.create) == [at.expected]
    before = len(hub.requests)
    lines = run('\n'.join((OFFLINE, at.create, other.create, plain.create)))
    assert lines[0] == at.expected
    assert all('WeightsError' in line and 'HF_HUB_OFFLINE is set' in line for line in lines[1:])
    assert len(hub.requests) == before


@pytest.mark.parametrize('kind', ROUTES)
def test_truncated_once(kind, hub, run, route):
    """huggingface_hub asks for the rest; a plain download is refused, leaves nothing, and works the next time."""
    at = route(kind, 'truncated')
    hub.faults[at.name] = 'truncate'
    last = run(at.create)[-1]  # huggingface_hub says on stderr what happened
    if kind == 'url':
        assert f'the download ended after {len(at.data) // 2} of {len(at.data)} bytes' in last
    if last != at.expected:  # huggingface_hub before 1.0 gives up, too
        assert last.startswith('WeightsError') and not at.leftovers()
        last = run(at.create)[-1]
    assert last == at.expected


def test_wrong_bytes(hub, run, route):
    """As many bytes as announced, but others: only the digest tells."""
    at = route('hub', 'wrong')
    hub.faults[at.name] = 'corrupt'
    (line,) = run(at.create)
    assert line.startswith('WeightsError') and 'is not the one the Hub states' in line and 'removed' in line
    assert not at.leftovers() and not at.record.exists()
    assert run(at.create) == [at.expected]


def test_not_the_published_file(hub, run, weights):
    """The digest of some files is known: a Hub that serves another, and says so, is not believed."""
    repo, commit = 'hustvl/Vim-tiny-midclstok', '07c00e0e4ea2973d8e343afdd807128a57bc9fd5'
    hub.put(repo, 'vim_t_midclstok_76p1acc.pth', weights()[0], commit=commit)
    (line,) = run("create('vim_tiny_patch16_224')")
    assert 'is not the published one, fedb1e60267f' in line and 'removed' in line


@pytest.mark.parametrize('kind', ROUTES)
def test_altered_in_the_cache(kind, hub, run, route):
    """Where nobody states a digest, that of the first use counts."""
    at = route(kind, 'altered', **({'lfs': False} if kind == 'hub' else {}))
    assert run(at.create) == [at.expected]
    data = bytearray(at.data)
    data[len(data) // 2] ^= 1
    at.file.write_bytes(data)
    (line,) = run(at.create)
    assert line.startswith('WeightsError') and 'is not the one from first use' in line
    assert not at.leftovers() and at.record.exists()
    assert run(at.create) == [at.expected]
    at.file.write_bytes(at.data[:1000])  # cut short by something else
    assert 'WeightsError' in run(at.create)[0] and not at.leftovers()


def test_replaced_at_the_source(hub, run, route, weights):
    """A new file at the old address is not taken silently; the error says how to take it."""
    at = route('url', 'replaced')
    assert run(at.create) == [at.expected]
    data, digest = weights(5)
    hub.put_plain(at.name, data)
    at.file.unlink()
    assert f'if the authors replaced the file, remove {at.record}' in run(at.create)[0]
    at.record.unlink()
    assert run(at.create) == [f'ok {digest}']


def test_same_name_elsewhere(hub, run, route):
    """Two addresses with one file name share a place in torch's cache: the second is not served the first's file."""
    at = route('url', 'twice')
    assert run(at.create) == [at.expected]
    assert 'was downloaded from' in run(at.create.replace('/files/', '/files//'))[0]


@pytest.mark.parametrize('kind', ROUTES)
def test_not_weights(kind, hub, run, route):
    """A page instead of a file, with status 200."""
    at = route(kind, 'page', data=b'<html>Sign in</html>' * 50, **({'lfs': False} if kind == 'hub' else {}))
    (line,) = run(at.create)
    assert line.startswith('WeightsError') and 'cannot be read as a checkpoint' in line
    assert not at.leftovers() and not at.record.exists()


@pytest.mark.parametrize('kind', ROUTES)
def test_code_in_a_download_never_runs(kind, hub, run, route, weights, tmp_path):
    """Whatever torch's environment variable says."""

    class Bomb:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/ran',)

    at = route(kind, 'bomb', data=weights(extra=Bomb())[0])
    (line,) = run(at.create, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')
    assert 'asks to run' in line and 'system' in line
    assert not (tmp_path / 'ran').exists()


def test_missing(hub, run, route):
    at = route('hub', 'missing')
    missing = at.overlay.replace('.pth', '.bin')
    codes = (f'create({missing})', "create(hf_hub_id='acme/nowhere', hf_hub_filename='w.pth')")
    codes += (f"create(url='{hub.url}/files/nowhere.pth')", "create(url='http://127.0.0.1:9/w.pth')")
    lines = run('\n'.join(codes))
    for line, reason in zip(lines, ('has no such file', 'has no such repository', '404', 'refused'), strict=True):
        assert line.startswith('WeightsError') and reason in line


def test_gated_and_private(hub, run, route):
    gated, private = route('hub', 'gated'), route('hub', 'private')
    hub.locked = {gated.repo: ('GatedRepo', 'hf_key'), private.repo: ('RepoNotFound', 'hf_key')}
    assert 'is gated; accept its terms at' in run(gated.create)[0]  # 401
    assert 'is gated; accept its terms at' in run(gated.create, HF_TOKEN='hf_other')[0]  # 403
    assert 'if it is private, run `hf auth login` or set HF_TOKEN' in run(private.create)[0]
    assert run(gated.create, HF_TOKEN='hf_key') == [gated.expected]
    assert run(private.create, HF_TOKEN='hf_key') == [private.expected]
    assert run(gated.create) == [gated.expected]  # from the cache


@pytest.mark.parametrize('kind', ROUTES)
def test_concurrent(kind, hub, start, route):
    """Both come out with the weights, whoever was first."""
    at = route(kind, 'concurrent')
    clients = [start(at.create) for _ in range(2)]
    assert [client.wait() for client in clients] == [(0, at.expected + '\n')] * 2
    assert len(at.leftovers()) == (2 if kind == 'hub' else 1)


@pytest.mark.parametrize('kind', ROUTES)
def test_killed_in_the_middle(kind, hub, start, run, route):
    """Half a file is never found under the name of the whole."""
    at = route(kind, 'killed')
    hub.faults[at.name] = 'stall'
    hub.halfway.clear()
    hub.resume.clear()
    client = start(at.create)
    assert hub.halfway.wait(30)
    os.kill(client.process, signal.SIGKILL)
    assert client.wait()[0] == -signal.SIGKILL
    hub.resume.set()
    del hub.faults[at.name]
    assert not at.file.exists()
    assert run(at.create) == [at.expected]


@pytest.mark.parametrize('kind', ROUTES)
def test_full_disk(kind, run, route):
    at = route(kind, 'full')
    limit = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(at.data) // 2}, -1))\n'
    (line,) = run(limit + at.create)
    assert line.startswith('WeightsError') and 'the download failed' in line
    assert not at.leftovers()
    assert run(at.create) == [at.expected]


@pytest.mark.parametrize('kind', ROUTES)
def test_read_only_cache(kind, run, route):
    """A cache that others fill is used as it is; what is wrong in it is refused all the same."""
    at = route(kind, 'readonly')
    assert run(at.create) == [at.expected]
    at.record.unlink()
    code = """
import pathlib
def refuse(*args, **kwargs):
    raise OSError(30, 'Read-only file system')
def open_to_read(path, mode='r', *args, open=pathlib.Path.open, **kwargs):
    return open(path, mode, *args, **kwargs) if mode.startswith('r') else refuse()
pathlib.Path.open = open_to_read
pathlib.Path.write_text = pathlib.Path.unlink = refuse
"""
    assert run(code + at.create) == [at.expected]
    assert not at.record.exists()
    assert run(at.create) == [at.expected]
    at.file.write_bytes(at.data[:-1])
    assert 'could not be removed (Read-only file system): remove it by hand' in run(code + at.create)[0]


def test_by_hand(run):
    """Weights without an address: where to get them, and which argument takes the file."""
    (line,) = run("create('msvmamba_nano')")
    assert 'but those to download by hand: https://drive.google.com/drive/folders/' in line
    assert "what is in a file of yours loads by pretrained_cfg_overlay={'file': ...}" in line
    assert 'vmamba_nano has no weights; what is' in run("create('vmamba_nano')")[0]
