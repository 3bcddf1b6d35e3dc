"""`visionssm weights`, against the Hub on the loopback."""

import io
import json
from pathlib import Path

import pytest
import timm
import torch

REPO = 'ChenhongyiYang/PlainMamba'
TAG = 'plainmamba_l1.in1k'


@pytest.fixture
def command(run):
    """Run `visionssm weights` in a process of its own: (exit code, lines)."""

    def command(*args):
        *lines, status = run(f'from visionssm.cli import main; print(main({["weights", *args]!r}))')
        return int(status), lines

    return command


@pytest.fixture(scope='module')
def published(hub):
    """The tag's file, of zeros, where its address says."""
    with torch.device('meta'):
        state = timm.create_model('plainmamba_l1').state_dict()
    stream = io.BytesIO()
    torch.save({name: torch.zeros((), dtype=x.dtype).expand(x.shape) for name, x in state.items()}, stream)
    hub.put(REPO, 'l1.pth', stream.getvalue())


def test_from_download_to_prune(published, hub, homes, cli, run, command):
    folder = Path(homes['HF_HOME'], 'hub', 'models--ChenhongyiYang--PlainMamba')
    status, out, err = cli('weights', TAG, '--download')  # HF_ENDPOINT and HF_HOME as read at the start of a process
    assert status == 0 and out.startswith(f'{TAG}: verified, {folder}') and out.count('\n') == 1, err

    before = len(hub.requests)
    assert run("create('plainmamba_l1')")[0].startswith('ok')
    status, out, _ = cli('weights', TAG, '--verify', HF_HUB_OFFLINE='1')
    assert status == 0 and 'verified' in out
    status, lines = command(TAG, '--json')
    (entry,) = json.loads('\n'.join(lines))
    assert entry['state'] == 'verified' and entry['path'].startswith(str(folder))
    assert entry['size'] == Path(entry['path']).stat().st_size
    assert entry['license'] == 'apache-2.0' and entry['reported'] == {'top-1': 77.9}
    assert len(hub.requests) == before

    blob = Path(entry['path']).resolve()
    blob.write_bytes(bytes(100))
    status, lines = command(TAG, '--verify')
    assert status == 1 and 'is damaged or was altered' in lines[0] and not blob.exists()
    assert command(TAG, '--verify') == (0, ['none of it is cached'])

    assert command(TAG, '--download')[0] == 0
    other = folder / 'blobs' / 'other'
    other.write_bytes(b'not ours')
    status, lines = command(TAG, '--prune')
    assert status == 0 and lines[-1].endswith('MB freed')
    removed = {line.removeprefix('removed ') for line in lines[:-1]}
    assert removed == {f'{entry["path"]}.sha256', entry['path'], str(blob)}
    assert other.exists() and not blob.exists()


def test_prune_spares_shared_blobs(hub, homes, run, command, published):
    for commit in ('a' * 40, 'b' * 40):
        hub.put(REPO, 'l2.pth', hub.repos[REPO]['c' * 40, 'l1.pth'][0], commit=commit)
        run(f"create('test_vim', hf_hub_id='{REPO}@{commit}', hf_hub_filename='l2.pth')")
    refs = Path(homes['HF_HOME'], 'hub', 'models--ChenhongyiYang--PlainMamba', 'refs', 'main')
    refs.parent.mkdir(parents=True, exist_ok=True)
    refs.write_text('a' * 40)
    lines = command('plainmamba_l2.in1k', '--prune')[1]
    assert len(lines) == 3 and not any('blobs' in line for line in lines)
    hub.branches[REPO] = 'c' * 40
    refs.write_text('c' * 40)


def test_remains_of_a_killed_download(homes, command):
    folder = Path(homes['TORCH_HOME'], 'hub', 'checkpoints')
    folder.mkdir(parents=True, exist_ok=True)
    name = 'vssm1_tiny_0230s_ckpt_epoch_264.pth'
    mine, other = folder / f'{name}.0123.partial', folder / 'resnet.pth.0123.partial'
    mine.write_bytes(bytes(10)), other.write_bytes(bytes(10))
    assert command('vmamba_tiny_s1l8.in1k', '--prune')[1][0] == f'removed {mine}'
    assert not mine.exists() and other.exists()


def test_list(command):
    status, lines = command()
    text = '\n'.join(lines)
    assert status == 0
    for part in (
        'hf-hub:hustvl/Vim-tiny-midclstok@07c00e0e4ea2973d8e343afdd807128a57bc9fd5/vim_t_midclstok_76p1acc.pth',
        'https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth',
        'https://drive.google.com/drive/folders/1J41w3ApitQhp2O3wHmJoOs4U032uqebK',
        'vmamba_tiny_s1l8.upernet_160k_ade20k',
        'mambaout_femto.in1k',
    ):
        assert part in text
    assert len([line for line in lines if 'contradictory' in line]) == 3 + 3 + 5 + 3


def test_refusals(command):
    status, lines = command('msvmamba_nano', '--download')
    assert status == 1 and 'by hand from https://drive.google.com/drive/folders/' in lines[0]
    for args, reason in (('--download', "'*' is all"), ('--prune', "'*' is all"), ('nonsense', 'no weights match')):
        status, (line,) = command(args)
        assert status == 2 and line.startswith('visionssm: ') and reason in line
