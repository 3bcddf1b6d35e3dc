"""Every command, what it prints, and that bad input ends with exit code 2 and one line."""

import json
import pickle
import re
import signal
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

import visionssm
from visionssm import cli
from visionssm.catalog import machine as _environment
from visionssm.ops.dispatch import BACKENDS, OPS

Image = pytest.importorskip('PIL.Image')


@pytest.fixture(autouse=True)
def unchanged_process():
    """The demo command sets the number of threads and a signal handler, for its process."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def run(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*args):
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as end:  # argparse
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / 'photo.png'
    Image.effect_noise((50, 40), 80).convert('RGB').save(file)
    return file


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model with two classes in timm's Hub layout."""
    path = tmp_path_factory.mktemp('model') / 'two'
    torch.manual_seed(0)
    model = timm.create_model('test_vmamba', num_classes=2, scan='hilbert')
    save_for_hf(
        model,
        str(path),
        model_config={'label_names': ['cat', 'dog']},
        model_args={'scan': model.scan},
        safe_serialization=True,
    )
    return path


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A checkpoint of `test_vmamba` as training scripts write them."""
    file = tmp_path_factory.mktemp('weights') / 'weights.pth'
    torch.manual_seed(0)
    torch.save({'model': timm.create_model('test_vmamba').state_dict(), 'epoch': 3}, file)
    return file


def assert_refused(result, *parts):
    code, out, err = result
    assert code == 2
    assert out == ''
    assert err.startswith('visionssm: ') and err.count('\n') == 1 and 'Traceback' not in err
    for part in parts:
        assert str(part) in err


def test_version(run):
    assert run('--version') == (0, f'visionssm {visionssm.__version__}\n', '')


def test_as_a_module():
    command = [sys.executable, '-W', 'ignore', '-m', 'visionssm', 'info', 'nope']
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert_refused((process.returncode, process.stdout, process.stderr), "'nope'")


def test_traceback_option(run):
    with pytest.raises(ValueError, match="unknown model 'nope'"):
        run('--traceback', 'info', 'nope')


def test_bugs_keep_their_traceback(run, monkeypatch):
    def broken(args):
        raise KeyError('a bug')

    monkeypatch.setattr(cli.look, '_list', broken)
    with pytest.raises(KeyError):
        run('list')


def test_interrupt(run, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.look, '_list', interrupted)
    code, _, err = run('list')
    assert code == 130 and err.strip() == 'visionssm: interrupted'


def test_list(run):
    code, out, _ = run('list', 'vmamba_*_s1l*')
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ['model', 'params', '(M)', 'input', 'top-1', 'reported', 'licence', 'weights']
    row = next(line for line in lines if line.startswith('vmamba_tiny_s1l8'))
    assert row.split() == ['vmamba_tiny_s1l8.in1k', '30.2', '3x224x224', '82.6', 'mit', 'yes']


def test_list_markdown_and_part_of_a_name(run):
    code, out, _ = run('list', 'patch16_stride8', '--markdown')
    assert code == 0
    lines = out.partition('\n\n')[0].splitlines()
    assert len(lines) == 4 and all(line.startswith('|') and line.endswith('|') for line in lines)
    assert len({line.count('|') for line in lines}) == 1


def test_list_shows_the_family_that_timm_has(run):
    code, out, _ = run('list', 'mambaout_femto')
    assert code == 0 and out.splitlines()[2].split() == [
        'mambaout_femto.in1k',
        '7.3',
        '3x224x224',
        '78.9',
        'apache-2.0',
        'yes',
    ]


def test_info(run):
    code, out, _ = run('info', 'vim_tiny_patch16_224')
    assert code == 0
    for part in ('7.1', 'bidirectional', '192 channels at 1/16', 'hf-hub:hustvl/Vim', 'reported by the authors'):
        assert part in out


def test_env(run):
    code, out, _ = run('env')
    assert code == 0
    for part in ('python', torch.__version__, timm.__version__, 'kernel cache', 'compiler', 'backends'):
        assert part in out
    served = re.findall(r'^(\w+) +cpu +(\w+) +(.*)$', out, re.M)
    assert [(op, name) for op, name, _ in served] == [(backend.op, backend.name) for backend in BACKENDS]
    assert [op for op, _, text in served if text == 'used'] == list(OPS)
    assert served[0][1:] == ('triton', 'no: it serves cuda tensors, these are on cpu')


def test_selfcheck(run):
    code, out, _ = run('selfcheck', '--backend', 'torch', 'reference')
    assert code == 0
    assert re.search(r'^torch +float64 +14 .* ok ', out, re.M)
    assert 'FAILED' not in out


def test_selfcheck_reports_a_broken_backend(run, monkeypatch):
    from visionssm.ops import chunked

    right = chunked.forward

    def wrong(*args):
        out, state = right(*args)
        return out * 1.001, state

    monkeypatch.setattr(chunked, 'forward', wrong)
    code, out, _ = run('selfcheck', '--backend', 'torch')
    assert code == 1 and 'FAILED' in out and 'NOT all' in out


def test_selfcheck_reports_a_backend_that_raises(run, monkeypatch):
    from visionssm.ops import chunked

    def broken(*args):
        raise RuntimeError('no such\ninstruction')

    monkeypatch.setattr(chunked, 'backward', broken)
    code, out, _ = run('selfcheck', '--backend', 'torch')
    assert code == 1 and 'RuntimeError: no such instruction' in out


def test_scans(run, tmp_path, monkeypatch):
    code, out, _ = run('scans')
    assert code == 0 and re.search(r'^hilbert +\d', out, re.M)
    pytest.importorskip('matplotlib')
    from visionssm.scans import plot as _plot

    monkeypatch.setattr(_plot, 'list_scans', lambda: ['raster'])  # all of them take seconds
    code, out, _ = run('scans', '--plot', tmp_path / 'scans.png')
    assert code == 0 and (tmp_path / 'scans.png').stat().st_size > 1000


def test_classify_json(run, photo, folder):
    code, out, _ = run('classify', photo, photo, '--model', f'local-dir:{folder}', '--json')
    assert code == 0
    first, second = json.loads(out)
    assert first == second and first['file'] == str(photo)
    assert {prediction['label'] for prediction in first['predictions']} == {'cat', 'dog'}
    assert sum(prediction['probability'] for prediction in first['predictions']) == pytest.approx(1, abs=1e-5)


def test_classify_with_a_checkpoint_and_imagenet_names(run, photo, weights):
    code, out, _ = run('classify', photo, '--model', 'test_vmamba', '--checkpoint', weights, '--topk', '3')
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == str(photo) and len(lines) == 4
    assert all(re.match(r' +\d+\.\d+%  [a-zA-Z]', line) for line in lines[1:])


def test_classify_in_grey_at_another_size(run, photo, tmp_path):
    save_for_hf(timm.create_model('test_vmamba', in_chans=1, num_classes=2), str(tmp_path), model_args={'in_chans': 1})
    code, out, _ = run('classify', photo, '--model', f'local-dir:{tmp_path}', '--img-size', '64', '--json')
    assert code == 0 and len(json.loads(out)[0]['predictions']) == 2


def test_classify_gives_what_timm_gives(run, photo, folder):
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = create_transform(**resolve_data_config({'img_size': 64}, model=model), is_training=False)
    with torch.inference_mode():
        expected = model(transform(Image.open(photo)).unsqueeze(0)).softmax(1)[0]
    code, out, _ = run('classify', photo, '--model', f'local-dir:{folder}', '--img-size', '64', '--json')
    for prediction in json.loads(out)[0]['predictions']:
        assert prediction['probability'] == pytest.approx(float(expected[prediction['index']]), abs=1e-5)


@pytest.mark.parametrize(
    'args, parts',
    [
        (['info', 'vmamba_tini_s1l8'], ["'vmamba_tini_s1l8'", 'vmamba_tiny_s1l8']),
        (['info', 'vmamba_tiny_s1l8.in22k'], ["'vmamba_tiny_s1l8.in22k'", 'vmamba_tiny_s1l8.in1k']),
        (['info', 'resnet50'], ["unknown model 'resnet50'"]),
        (['list', 'nope*'], ["'nope*'"]),
        (['selfcheck', '--backend', 'cuda'], ["'cuda'", 'triton, cpu, torch, reference']),
        (['selfcheck', '--device', 'tpu'], ["'tpu'", 'cpu']),
        (['demo', '--model', 'vmamba'], ["'vmamba'", 'vmamba_']),
        (['demo', '--scan', 'hilber'], ["'hilber'", "'hilbert'"]),
        (['demo', '--scan', '{"name": "local", "window": "big"}'], ["'window'", "'big'", 'int']),
        (['demo', '--scan', '{"name": '], ['not valid JSON']),
        (['demo', '--compare-scans', 'raster,,cross'], ["'raster,,cross'"]),
        (['demo', '--compare-scans', 'raster,nope'], ["'nope'"]),
        (['demo', '--compare-scans', 'raster', '--scan', 'cross'], ['--scan', '--compare-scans']),
        (['scans', '--plot', '/dev/null/scans.png'], ['/dev/null is a file']),
        (['scans', '--plot', 'scans.xyz'], ['scans.xyz', '.png']),
        (['classify', 'none.png', '--model', 'vmamba_nano'], ['vmamba_nano has no published weights', 'local-dir:']),
        (['classify', 'none.png', '--model', 'local-dir:nowhere'], ['nowhere']),
        (['classify', 'none.png', '--model', 'test_vmamba', '--checkpoint', 'none.pth'], ['none.pth']),
        (['classify', 'none.png', '--model', 'nope'], ["'nope'"]),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_bad_input(run, args, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*args), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'args',
    [
        ['demo', '--epochs', '0'],
        ['classify'],
        [],
        ['dmo'],
        ['demo', '--threads', 'all'],
        ['demo', '--epochs', '9' * 20],
    ],
)
def test_bad_usage(run, args):
    code, out, err = run(*args)
    assert code == 2 and out == '' and 'usage' in err and 'Traceback' not in err


def test_bad_environment(run, photo, folder, monkeypatch):
    monkeypatch.setenv('VISIONSSM_BACKEND', 'gpu')
    assert_refused(run('classify', photo, '--model', f'local-dir:{folder}'), 'VISIONSSM_BACKEND', "'gpu'", 'triton')


@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n' + b'\0' * 40])
def test_files_that_are_no_images(run, folder, photo, tmp_path, content):
    file = tmp_path / 'bad.png'
    file.write_bytes(content)
    assert_refused(run('classify', photo, file, '--model', f'local-dir:{folder}'), file, 'not an image')


def test_truncated_and_missing_image(run, folder, photo, tmp_path):
    file = tmp_path / 'cut.png'
    file.write_bytes(photo.read_bytes()[:1500])
    assert_refused(run('classify', file, '--model', f'local-dir:{folder}', '--json'), file, 'not an image')
    assert_refused(run('classify', tmp_path / 'x.png', '--model', f'local-dir:{folder}'), 'no image file', 'x.png')


class Malice:
    def __reduce__(self):
        return eval, ('open("pwned", "w")',)


def truncated(file, weights):
    file.write_bytes(weights.read_bytes()[:5000])


def foreign(file, weights):
    torch.save({'conv.weight': torch.zeros(3)}, file)


def malicious(file, weights):
    torch.save({'model': Malice()}, file)


def malicious_pickle(file, weights):
    file.write_bytes(pickle.dumps(Malice()))


def text(file, weights):
    file.write_text('<html>404</html>')


def no_tensors(file, weights):
    torch.save([1, 2, 3], file)


@pytest.mark.parametrize('make', [truncated, foreign, malicious, malicious_pickle, text, no_tensors])
def test_bad_checkpoints(run, photo, weights, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'bad.pth'
    make(file, weights)
    result = run('classify', photo, '--model', 'test_vmamba', '--checkpoint', file)
    assert_refused(result, *(['conv.weight', 'missing'] if make is foreign else [file]))
    assert not (tmp_path / 'pwned').exists()


def test_bad_model_folders(run, photo, folder, tmp_path):
    name = f'local-dir:{tmp_path}'
    (tmp_path / 'config.json').write_text('{"architecture": ')
    assert_refused(run('classify', photo, '--model', name), tmp_path, 'not valid JSON')
    (tmp_path / 'config.json').write_text('{"pretrained_cfg": {}}')
    assert_refused(run('classify', photo, '--model', name), name)
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    assert_refused(run('classify', photo, '--model', name), tmp_path)
    (tmp_path / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:9999])
    assert_refused(run('classify', photo, '--model', name), tmp_path)
    save_file({'head.weight': torch.zeros(2)}, tmp_path / 'model.safetensors')
    assert_refused(run('classify', photo, '--model', name), 'missing')
    (tmp_path / 'config.json').write_text('{"architecture": "nope", "pretrained_cfg": {}}')
    assert_refused(run('classify', photo, '--model', name), 'nope')


def test_size_below_one_patch(run, photo, weights, tmp_path):
    file = tmp_path / 'vim.pth'
    torch.save(timm.create_model('test_vim').state_dict(), file)
    result = run('classify', photo, '--model', 'test_vim', '--checkpoint', file, '--img-size', '8')
    assert_refused(result, '8x8', '16')


def test_size_beyond_any_memory(run, photo, weights):
    result = run('classify', photo, '--model', 'test_vmamba', '--checkpoint', weights, '--img-size', '2000000000')
    assert_refused(result, 'img_size is 2000000000', '16384')


def test_devices_name_the_cpu():
    assert _environment.devices()[0][0] == 'cpu'
    assert _environment.check_device('cpu') == torch.device('cpu')


@pytest.mark.parametrize(
    'args',
    [
        ['scans', '--plot'],
        ['viz', 'test_vmamba', 'a.png', '--random', '--output'],
        ['viz', 'test_vmamba', 'a.png', '--random', '--output', 'out', '--before'],
        ['demo', '--output'],
        ['train', '--data', 'digits', '--output'],
        ['train', '--data', 'digits', '--config'],
        ['compare', 'test_vmamba', '--data', 'digits', '--output'],
        ['convert', 'a.pth', '--model', 'test_vmamba', '--output'],
        ['features', 'a.png', '--model', 'test_vmamba', '--output'],
        ['export', 'test_vmamba', '--random', '--format', 'onnx', '--output'],
        ['quantize', 'test_vmamba', '--random', '--method', 'int8-weight', '--output'],
    ],
    ids=' '.join,
)
def test_no_path_is_not_the_working_folder(args, capsys):
    with pytest.raises(SystemExit, match='2'):
        cli.main([*args, ''])
    assert "'' is not allowed; give a path" in capsys.readouterr().err


@pytest.mark.parametrize(
    'args', [['train', '--data', 'digits', '--model', 'test_vmamba'], ['compare', 'test_vmamba', '--data', 'digits']]
)
def test_folders_of_others_stay_as_they_are(run, args, tmp_path):
    (tmp_path / 'image.png').write_bytes(b'')
    assert_refused(run(*args, '--output', str(tmp_path)), 'image.png')
    assert [file.name for file in tmp_path.iterdir()] == ['image.png']
