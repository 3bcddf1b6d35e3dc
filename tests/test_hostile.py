"""Files of strangers that ask for any amount of memory or time: every kind on every route, each refused in one line.

Each case runs in a child forked from one that has imported everything: it may take `MEMORY` more than that, and
`SECONDS` of processor time, which is what an endless read or loop takes; a wait without end fails at `PATIENCE`.
"""

import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import time
import traceback
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch.nn.modules import module as hooks

from visionssm import cli
from visionssm.apps.validate import Options, validate
from visionssm.hub.push import plan
from visionssm.models.bounds import check_size
from visionssm.scans import get_scan, list_scans
from visionssm.train.checkpoint import read_checkpoint
from visionssm.train.model import create_model
from visionssm.train.recipe import load_recipe
from visionssm.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='measures memory as Linux does')
MODEL = 'test_vmamba'
MEMORY, SECONDS, PATIENCE = 1 << 30, 10, 120
SPARSE = 8 << 30


def refused(call, *args, **kwargs):
    """The message with which `call` refuses, in a child within the limits."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with open('/proc/self/clear_refs', 'w') as stream:
                stream.write('5')  # the peak starts here
            before = peak()
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 1))
            torch.set_num_threads(1)
            try:
                call(*args, **kwargs)
                answer = 'accepted'
            except (ValueError, OSError) as error:
                answer = f'{type(error).__name__}: {error}'
            except BaseException:
                answer = f'raised {traceback.format_exc()}'
            grown = peak() - before
            answer = answer if grown < MEMORY else f'took {grown >> 20} MiB; {answer}'
            os.write(writer, answer.encode(errors='replace')[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with os.fdopen(reader) as stream:
        answer = stream.read() or 'hung, or ran out of processor time'
    assert answer.startswith(('ValueError', 'WeightsError', 'FileNotFoundError')), answer
    assert '\n' not in answer or 'weights do not fit' in answer, answer
    return answer


def peak():
    return next(int(line.split()[1]) << 10 for line in Path('/proc/self/status').open() if line.startswith('VmHWM'))


# ------------------------------------------------------------------------------------------------- checkpoint files


def stored(file, pickled, records=(), method=zipfile.ZIP_STORED):
    """A zip file laid out as torch's."""
    with zipfile.ZipFile(file, 'w', method, compresslevel=1) as archive:
        for name, content in [('data.pkl', pickled), ('byteorder', b'little'), *records, ('version', b'3\n')]:
            archive.writestr(f'archive/{name}', content)


def zeros_in(file, name, size=SPARSE):
    """Compressed zeros without end."""
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f'archive/{name}', 'w', force_zip64=True) as stream:
            block = bytes(1 << 24)
            for _ in range(size >> 24):
                stream.write(block)
        if name != 'data.pkl':
            archive.writestr('archive/data.pkl', pickle.dumps({}, 2))
        archive.writestr('archive/version', b'3\n')


def compressed_tensor(file):
    zeros_in(file, 'data/0', 1 << 30)


def compressed_pickle(file):
    zeros_in(file, 'data.pkl', 1 << 30)


def sparse_pickle(file):
    """Nothing is compressed: the pickle is a hole in the file."""
    with file.open('wb') as stream:
        name = b'archive/data.pkl'
        local = struct.pack('<4s5H3L2H', b'PK\3\4', 45, 0, 0, 0, 0, 0, 3 << 30, 3 << 30, len(name), 0) + name
        stream.write(local)
        stream.seek(3 << 30, os.SEEK_CUR)
        start = stream.tell()
        stream.write(
            struct.pack('<4s6H3L5H2L', b'PK\1\2', 45, 45, 0, 0, 0, 0, 0, 3 << 30, 3 << 30, len(name), 0, 0, 0, 0, 0, 0)
            + name
        )
        length = stream.tell() - start
        stream.write(struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 1, 1, length, start, 0))


def huge_directory(file):
    """A directory of eight GiB, all of it a hole."""
    with file.open('wb') as stream:
        stream.write(b'PK\3\4')
        stream.truncate(SPARSE)
        stream.seek(SPARSE)
        stream.write(struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, 0, 0, 1, 1, SPARSE - 4, 4))
        stream.write(struct.pack('<4sLQL', b'PK\6\7', 0, SPARSE, 1))
        stream.write(struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def overlong_record(file):
    """A record that says that it is larger than the file."""
    torch.save({'a': torch.zeros(1000)}, file)
    data = file.read_bytes()
    where = data.index(struct.pack('<2L', 4000, 4000), data.index(b'PK\1\2'))
    file.write_bytes(data[:where] + struct.pack('<2L', 1 << 30, 1 << 30) + data[where + 8 :])


def whole_file_of_zeros(file):
    with file.open('wb') as stream:
        stream.truncate(SPARSE)


def called(function, *args):
    """A pickle that calls `module name` with numbers."""
    body = b''.join(b'J' + struct.pack('<i', x) if isinstance(x, int) else x for x in args)
    return b'\x80\2}X\1\0\0\0ac' + function.replace(' ', '\n').encode() + b'\n(' + body + b'tRs.'


def big_bytes(file):
    stored(file, called('__builtin__ bytearray', 2**31 - 1))


def big_tensor(file):
    stored(file, called('torch Tensor', 2**15, 2**15))


def new_tensor(file):
    stored(file, called('torch Tensor', 2**15, 2**15).replace(b'R', b'\x81'))


def any_callable_within(file):
    inner = b'c__builtin__\nbytearray\nc__builtin__\nbytearray\nJ' + struct.pack('<i', 2**31 - 1) + b'\x85N'
    stored(file, called('torch._tensor _rebuild_from_type_v2', inner))


def doubling_bytes(file):
    codec = b'X\x09\0\0\0hex_codec'
    text, encode = b'X\4\0\0\0aaaa', b'c_codecs\nencode\n'
    pickled = encode + text + b'X\x06\0\0\0latin1\x86R'
    for _ in range(40):
        pickled = encode + pickled + codec + b'\x86R'
    stored(file, b'\x80\2' + pickled + b'.')


def tuples_of_tuples(file):
    """As a key: its hash visits 2^60 of them."""
    body = b'J\1\0\0\0'
    for i in range(60):
        body += b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86'
    stored(file, b'\x80\2}' + body + b'K\1s.')


def colliding_keys(file):
    keys = b''.join(b'\x8a\x20' + (k * (2**61 - 1) << 128).to_bytes(32, 'little') + b'K\1' for k in range(1, 30_000))
    stored(file, b'\x80\2}(' + keys + b'u.')


def many_steps(file):
    stored(file, b'\x80\2]' + b'(' + b']' * 30_000_000 + b'e.')


def long_text(file):
    stored(file, b'\x80\2}X\1\0\0\0aX' + struct.pack('<L', 100 << 20) + bytes(100 << 20) + b's.')


def expanded(file):
    torch.save({'a': torch.zeros(1).expand(10**6, 10**6)}, file)


def many_views(file):
    x = torch.zeros(1 << 20)
    torch.save({str(i): x.view(1024, 1024) for i in range(1000)}, file)


def sparse_layout(file):
    torch.save({'a': torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,))}, file)


def without_values(file):
    torch.save({'a': torch.empty(10**6, 10**6, device='meta')}, file)


def legacy(file, content):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def legacy_expanded(file):
    legacy(file, {'a': torch.zeros(1).expand(10**6, 10**6)})


def legacy_numel(file):
    legacy(file, {'a': torch.zeros(77_777)})
    data = file.read_bytes()
    file.write_bytes(data.replace(b'J' + struct.pack('<i', 77_777), b'J' + struct.pack('<i', 2**31 - 1)))


def legacy_text(file):
    """The pickle of the content is one text of three GiB, a hole in the file."""
    legacy(file, {})
    start = file.read_bytes()
    with file.open('wb') as stream:
        stream.write(start[: start.rindex(b'\x80\2}')] + b'\x80\2X' + struct.pack('<L', 3 << 30))
        stream.seek(3 << 30, os.SEEK_CUR)
        stream.write(b'.')


def legacy_call(file):
    legacy(file, {})
    start = file.read_bytes()
    file.write_bytes(start[: start.rindex(b'\x80\2}')] + called('__builtin__ bytearray', 2**31 - 1))


def tar(file, start=b'x'):
    """A name of eight GiB."""
    header = bytearray(512)
    header[: len(start)] = start
    header[100:107], header[108:115], header[116:123], header[136:147] = (
        b'0000644',
        b'0000000',
        b'0000000',
        b'00000000000',
    )
    header[124:136] = b'\x80\0\0\0' + struct.pack('>Q', SPARSE)
    header[156:157], header[257:265] = b'L', b'ustar  \0'
    header[148:156] = b' ' * 8
    header[148:156] = b'%06o\0 ' % sum(header)
    with file.open('wb') as stream:
        stream.write(header)
        stream.truncate(SPARSE + 1024)


def tar_that_begins_as_a_pickle(file):
    start = io.BytesIO()
    torch.save({}, start, _use_new_zipfile_serialization=False)
    tar(file, start.getvalue()[:16])


def pipe(file):
    os.mkfifo(file)


def device(file):
    file.symlink_to('/dev/zero')


def folder(file):
    file.mkdir()


CHECKPOINTS = (
    compressed_tensor, compressed_pickle, sparse_pickle, huge_directory, overlong_record, whole_file_of_zeros,
    big_bytes, big_tensor, new_tensor, any_callable_within, doubling_bytes, tuples_of_tuples, colliding_keys,
    many_steps, long_text, expanded, many_views, sparse_layout, without_values, legacy_expanded, legacy_numel,
    legacy_text, legacy_call, tar, tar_that_begins_as_a_pickle, pipe, device, folder,
)  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'w.pth'


@pytest.mark.parametrize('make', CHECKPOINTS, ids=lambda make: make.__name__)
def test_checkpoint(make, file):
    make(file)
    refused(load_checkpoint, file)


ROUTES = {
    'timm': lambda file: timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay={'file': str(file)}),
    'resume': read_checkpoint,
    'classify': lambda file: command('classify', __file__, '--model', MODEL, '--checkpoint', str(file)),
    'convert': lambda file: command('convert', str(file), '--model', MODEL, '--output', str(file.with_name('out'))),
}


def command(*args):
    """Run the command line; what it prints as an error is raised."""
    text = io.StringIO()
    sys.stderr = text
    code = cli.main(args)
    lines = text.getvalue().splitlines()
    assert code == 2 and len(lines) == 1, (code, lines)
    raise ValueError(lines[0])


@pytest.mark.parametrize('route', ROUTES)
@pytest.mark.parametrize(
    'make', [compressed_pickle, sparse_pickle, big_bytes, legacy_text, expanded, pipe, device], ids=lambda m: m.__name__
)
def test_every_route_to_checkpoints(make, route, file):
    make(file)
    refused(ROUTES[route], file)


# --------------------------------------------------------------------------------------------------- saved folders

FOLDER_ROUTES = {
    'timm': lambda folder: timm.create_model(f'local-dir:{folder}'),
    'timm-pretrained': lambda folder: timm.create_model(f'local-dir:{folder}', pretrained=True),
    'classify': lambda folder: command('classify', str(folder / 'photo.png'), '--model', f'local-dir:{folder}'),
    'features': lambda folder: command(
        'features', str(folder / 'photo.png'), '--model', f'local-dir:{folder}', '--output', f'{folder}/f.npz'
    ),
    'push': lambda folder: plan(folder, 'me/model'),
    'push-command': lambda folder: command('push', str(folder), 'me/model'),
    'initial': lambda folder: create_model(load_recipe(model=MODEL, data='digits', initial=str(folder)), 3, 2),
}
ARGS = {
    'depths': {'depths': [10**9] * 4},
    'depths-1e4': {'depths': [10_000] * 4},
    'depths-1e3': {'depths': [1000] * 4},
    'depths-many': {'depths': [1] * 4000, 'dims': [16] * 4000},
    'dims': {'dims': [10**6] * 4},
    'dims-4': {'dims': [16_384] * 4},
    'dims-1e30': {'dims': [10**30] * 4},
    'expand': {'expand': 1e12},
    'mlp_ratio': {'mlp_ratio': 1e300},
    'd_state': {'d_state': 10**8},
    'in_chans': {'in_chans': 10**9},
    'patch_size': {'patch_size': 10**6},
    'directions': {'scan': {'name': 'random', 'directions': 10**6}},
    'directions-1e9': {'scan': {'name': 'random', 'directions': 10**9}},
    'window': {'scan': {'name': 'local', 'window': 10**9, 'pad': 'zero'}},
    'step': {'scan': {'name': 'atrous', 'step': 10**6}},
    'step-1e30': {'scan': {'name': 'atrous_full', 'step': 10**30}},
    'scan-text': {'scan': '[' * 10**5},
    'scan-deep': {'scan': '{"name": ' + '[' * 10**5},
    'list': {'depths': list(range(10**6))},
}


@pytest.fixture
def saved(tmp_path):
    """A folder of a small model, with a photo."""
    folder = tmp_path / 'model'
    folder.mkdir()
    model = timm.create_model(MODEL, num_classes=2)
    save_for_hf(model, str(folder), model_args={}, safe_serialization=True)
    Image.new('RGB', (40, 40)).save(folder / 'photo.png')
    return folder


def change(folder, **entries):
    file = folder / 'config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize('route', [route for route in FOLDER_ROUTES if route != 'initial'])
@pytest.mark.parametrize('args', ARGS)
def test_model_args(args, route, saved):
    change(saved, model_args=ARGS[args])
    refused(FOLDER_ROUTES[route], saved)


def config_pipe(folder):
    (folder / 'config.json').unlink()
    os.mkfifo(folder / 'config.json')


def config_device(folder):
    (folder / 'config.json').unlink()
    (folder / 'config.json').symlink_to('/dev/zero')


def config_hole(folder):
    with (folder / 'config.json').open('r+b') as stream:
        stream.truncate(SPARSE)


def config_deep(folder):
    (folder / 'config.json').write_text('{"a":' * 10**5)


def config_array(folder):
    (folder / 'config.json').write_text('[1, 2]')


def weights_hole(folder):
    with (folder / 'model.safetensors').open('r+b') as stream:
        stream.truncate(SPARSE)


def weights_header(folder):
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', 90 << 20) + b'{' + b' ' * (90 << 20))


def weights_pipe(folder):
    (folder / 'model.safetensors').unlink()
    os.mkfifo(folder / 'model.safetensors')


def weights_of_more_classes(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['num_classes'] = 10**8
    change(folder, **{**config, 'num_classes': 10**8, 'model_args': {'num_classes': 10**8}})


def weights_of_another_model(folder):
    """64 GiB in the header and, as a hole, in the file; none of it fits the model."""
    header = json.dumps({'a': {'dtype': 'F32', 'shape': [16 << 30], 'data_offsets': [0, 64 << 30]}}).encode()
    with (folder / 'model.safetensors').open('wb') as stream:
        stream.write(struct.pack('<Q', len(header)) + header)
        stream.truncate(8 + len(header) + (64 << 30))


FOLDERS = (
    config_pipe, config_device, config_hole, config_deep, config_array, weights_hole, weights_header, weights_pipe,
    weights_of_more_classes, weights_of_another_model,
)  # fmt: skip


@pytest.mark.parametrize('route', ['timm-pretrained', 'classify', 'push-command', 'initial'])
@pytest.mark.parametrize('make', FOLDERS, ids=lambda make: make.__name__)
def test_folder(make, route, saved):
    if route == 'timm-pretrained' and make in (config_hole, config_deep, config_array):
        pytest.skip('timm reads its configuration itself')
    if route == 'initial' and make is weights_of_more_classes:
        pytest.skip('the classes are those of the data')
    make(saved)
    refused(FOLDER_ROUTES[route], saved)


@pytest.mark.parametrize(
    'entries',
    [
        {'input_size': [3, 10**6, 10**6]},
        {'input_size': [3, 1, 10**9]},
        {'crop_pct': 1e-9},
        {'label_names': 5},
        {'label_names': {'a': 'b'}},
        {'input_size': []},
        {'input_size': 'abc'},
        {'crop_pct': 'abc'},
        {'mean': [0.5] * 10**5},
        {'mean': [float('inf')] * 3},
        {'interpolation': 'abc'},
    ],
    ids=range(11),
)
def test_images(entries, saved):
    config = json.loads((saved / 'config.json').read_text())
    change(saved, pretrained_cfg={**config['pretrained_cfg'], **entries})
    refused(FOLDER_ROUTES['classify'], saved)


@pytest.mark.parametrize('make', [weights_hole, weights_pipe, compressed_pickle, big_bytes, None], ids=range(5))
def test_folder_of_a_model_of_timm(make, tmp_path):
    model = timm.create_model('test_resnet', num_classes=2)
    args = {'layers': [10**7] * 4} if make is None else {}
    save_for_hf(model, str(tmp_path), model_args=args, safe_serialization=True)
    Image.new('RGB', (40, 40)).save(tmp_path / 'photo.png')
    if make in (compressed_pickle, big_bytes):
        (tmp_path / 'model.safetensors').unlink()
        (tmp_path / 'pytorch_model.bin').unlink(missing_ok=True)
        make(tmp_path / 'pytorch_model.bin')
    elif make:
        make(tmp_path)
    refused(FOLDER_ROUTES['classify'], tmp_path)


# ------------------------------------------------------------------------------------------------------ text files

BOMB = 'a0: &a0 {x: 1}\n' + ''.join(f'a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n' for i in range(1, 40))


@pytest.mark.parametrize('content', [BOMB, 'model: ' + '[' * 10**4, 'x' * 10**6, None, 'base: /dev/zero'], ids=range(5))
def test_recipe(content, tmp_path):
    file = tmp_path / 'recipe.yaml'
    os.mkfifo(file) if content is None else file.write_text(content)
    refused(command, 'train', '--config', str(file))
    refused(load_recipe, file)


@pytest.mark.parametrize(
    'args', [{'depths': [10**9] * 4}, {'dims': [10**6] * 4}, {'scan': {'name': 'random', 'directions': 10**9}}], ids=str
)
def test_recipe_of_a_large_model(args, tmp_path):
    recipe = load_recipe(model=MODEL, data='digits', model_args=args)
    refused(create_model, recipe, 1, 10)


@pytest.mark.parametrize(
    'content', [f'---\n{BOMB}---\n# Model\n', '---\n' + 'a: [' * 10**6 + '\n---\n', None], ids=range(3)
)
def test_card(content, saved):
    file = saved / 'README.md'
    os.mkfifo(file) if content is None else file.write_text(content)
    if content is None:
        assert 'README.md' in plan(saved, 'me/model').files  # it is no file, so one is made
    else:
        refused(FOLDER_ROUTES['push-command'], saved)


def test_class_map(saved, tmp_path):
    (tmp_path / 'val' / 'a').mkdir(parents=True)
    os.mkfifo(tmp_path / 'map.txt')
    os.mkfifo(tmp_path / 'map.json')
    for name in ('map.txt', 'map.json'):
        options = Options(model=f'local-dir:{saved}', data=str(tmp_path), class_map=str(tmp_path / name))
        refused(validate, options, tmp_path / 'results')


# ------------------------------------------------------------------------------------------------------ scan orders


@pytest.mark.parametrize(
    'spec',
    [
        {'name': 'random', 'directions': 10**6},
        {'name': 'random', 'directions': 10**9},
        {'name': 'random', 'seed': 10**100},
        {'name': 'local', 'window': 10**9, 'pad': 'zero'},
        {'name': 'local', 'window': 10**40},
        {'name': 'atrous', 'step': 10**9},
        {'name': 'nested_s', 'stripe': 10**40},
    ],
    ids=str,
)
def test_scan(spec):
    refused(get_scan, spec)
    refused(get_scan, json.dumps(spec))


@pytest.mark.parametrize('name', list_scans())
def test_scan_of_a_large_image(name):
    refused(get_scan(name).table, 10**5, 10**5)
    refused(get_scan(name).inverse, 10**5, 10**5)


# ------------------------------------------------------------------------------------- models of a program's own


def test_large_models_of_ones_own(monkeypatch):
    """Nothing stops a program's own model below 2^30 parameters, and a variable says more."""
    large = {'dims': (16, 32, 64, 9000)}
    with torch.device('meta'):
        model = timm.create_model(MODEL, **large)
        with pytest.raises(ValueError, match='has more than 1073741824 parameters; VISIONSSM_MAX_PARAMETERS allows'):
            timm.create_model(MODEL, dims=(16, 32, 64, 90_000))
        monkeypatch.setenv('VISIONSSM_MAX_PARAMETERS', str(1 << 40))
        timm.create_model(MODEL, dims=(16, 32, 64, 90_000))
    assert 1 << 27 < sum(x.numel() for x in model.parameters()) < 1 << 30


def test_counting_leaves_no_trace():
    """A model starts from the same random numbers as without being counted."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    check_size(MODEL, lambda: timm.create_model(MODEL), {}, from_file=True)
    assert torch.equal(state, torch.get_rng_state())
    assert not hooks._global_parameter_registration_hooks
