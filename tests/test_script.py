"""Other people's scripts find our models; arguments, path, exit code and traceback are as under Python itself."""

import json
import os
import subprocess
import sys

import pytest

# as timm's scripts do: no word of this package
CLIENT = """
import argparse, json, sys
import timm, torch
import neighbour

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--model', '-m', default='resnet18')
    args = parser.parse_args()
    model = timm.create_model(args.model, num_classes=3).eval()
    with torch.inference_mode():
        shape = list(model(torch.rand(1, 3, 64, 64)).shape)
    print(json.dumps({'shape': shape, 'argv': sys.argv, 'path': sys.path[0], 'side': neighbour.SIDE}))

if __name__ == '__main__':
    main()
"""


@pytest.fixture
def scripts(tmp_path):
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'client.py').write_text(CLIENT)
    (folder / 'neighbour.py').write_text('SIDE = 1')
    return folder


def run(*arguments, cwd=None):
    paths = [p for p in (os.getcwd(), os.path.join(os.getcwd(), 'kernels'), os.environ.get('PYTHONPATH', '')) if p]
    command = [sys.executable, '-W', 'ignore', '-m', 'visionssm', *map(str, arguments)]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_script_finds_our_models(scripts, tmp_path):
    file = scripts / 'client.py'
    done = run('run', file, '-m', 'test_vmamba', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        'shape': [1, 3], 'argv': [str(file), '-m', 'test_vmamba'], 'path': str(scripts), 'side': 1,
    }  # fmt: skip


def test_a_module_finds_our_models(scripts):
    done = run('run', '-m', 'client', '--model', 'test_groupmamba', cwd=scripts)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['shape'] == [1, 3] and found['path'] == str(scripts)
    assert found['argv'] == [str(scripts / 'client.py'), '--model', 'test_groupmamba']


@pytest.mark.parametrize(
    'code, status',
    [('import sys; sys.exit(7)', 7), ('raise SystemExit("enough")', 1), ('raise KeyboardInterrupt', 130)],
)
def test_exit_codes(tmp_path, code, status):
    (tmp_path / 'end.py').write_text(code)
    assert run('run', tmp_path / 'end.py').returncode == status


def test_the_traceback_is_the_scripts(tmp_path):
    file = tmp_path / 'fails.py'
    file.write_text('def f():\n    raise ValueError("theirs")\n\nf()\n')
    ours, plain = run('run', file), subprocess.run([sys.executable, file], capture_output=True, text=True, check=False)
    assert ours.returncode == plain.returncode == 1 and ours.stderr == plain.stderr


def test_what_is_not_there(tmp_path):
    for arguments, message in (
        (['nowhere.py'], 'no script at nowhere.py'),
        (['-m', 'no_such.module'], 'no module is named no_such.module'),
        ([], 'no script is given'),
    ):
        done = run('run', *arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith(f'visionssm: {message}') and done.stderr.count('\n') == 1
