"""A server that speaks the Hub's protocol on the loopback, and clients of it: the real huggingface_hub under timm."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

import visionssm  # noqa: F401  registers the models

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMIT = 'c' * 40


class Hub(ThreadingHTTPServer):
    """Repositories at /owner/name/resolve/revision/file, plain files at /files/name; both misbehave on request.

    `faults[file name]` is what goes wrong with its bodies: 'truncate' and 'corrupt' once, 'stall' after half of it
    until `resume` is set (`halfway` says that it got there).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.repos, self.branches, self.plain = {}, {}, {}
        self.locked, self.faults, self.requests = {}, {}, []
        self.halfway, self.resume = threading.Event(), threading.Event()

    def put(self, repo, name, data, commit=COMMIT, lfs=True):
        self.repos.setdefault(repo, {})[commit, name] = (data, lfs)
        self.branches[repo] = commit

    def put_plain(self, name, data):
        self.plain[name] = data
        return f'{self.url}/files/{name}'

    def count(self, text='', method=''):
        return sum(text in path and verb.startswith(method) for verb, path in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header('X-Error-Code', code)
        self.send_header('X-Error-Message', f'{code} it is')
        self.send_header('Content-Length', '0')
        self.end_headers()

    def answer(self, body):
        hub = self.server
        hub.requests.append((self.command, self.path))
        parts = self.path.strip('/').split('/')
        if parts[0] == 'files':
            return self.send(parts[1], hub.plain.get(parts[1]), {}, body)
        if len(parts) < 5 or parts[2] != 'resolve':
            return self.refuse(404, 'EntryNotFound')
        repo, revision, name = '/'.join(parts[:2]), parts[3], '/'.join(parts[4:])
        if repo in hub.locked:
            code, token = hub.locked[repo]
            given = self.headers.get('Authorization')
            if given != f'Bearer {token}':
                return self.refuse(403 if given else 401, code)
        if repo not in hub.repos:
            return self.refuse(404, 'RepoNotFound')
        commit = hub.branches[repo] if revision == 'main' else revision
        if commit not in {commit for commit, _ in hub.repos[repo]}:
            return self.refuse(404, 'RevisionNotFound')
        if (commit, name) not in hub.repos[repo]:
            return self.refuse(404, 'EntryNotFound')
        data, lfs = hub.repos[repo][commit, name]
        digest = hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(data).hexdigest()
        headers = {'X-Repo-Commit': commit, 'ETag': f'"{digest}"', 'Accept-Ranges': 'bytes'}
        if lfs:
            headers |= {'X-Linked-Etag': f'"{digest}"', 'X-Linked-Size': str(len(data))}
        return self.send(name, data, headers, body)

    def send(self, name, data, headers, body):
        hub = self.server
        if data is None:
            return self.refuse(404, 'EntryNotFound')
        start = int(self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').partition('-')[0])
        self.send_response(206 if start else 200)
        if start:
            headers = {**headers, 'Content-Range': f'bytes {start}-{len(data) - 1}/{len(data)}'}
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        if not body:
            return None
        fault = hub.faults.get(name)
        if fault in ('truncate', 'corrupt'):
            del hub.faults[name]
        if fault == 'corrupt':
            data = data[:-100] + bytes(100)
        half = len(data) // 2
        self.wfile.write(data[start:half] if fault else data[start:])
        if fault == 'stall':
            self.wfile.flush()
            hub.halfway.set()
            hub.resume.wait(30)
        if fault == 'truncate':
            self.close_connection = True
        elif fault:
            self.wfile.write(data[max(start, half) :])
        return None


@pytest.fixture(scope='session')
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.resume.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def homes(hub, tmp_path_factory):
    """Environment of the clients: this Hub, and empty caches."""
    folder = tmp_path_factory.mktemp('homes')
    paths = [str(ROOT), str(ROOT / 'kernels'), os.environ.get('PYTHONPATH', '')]
    return {
        'HF_ENDPOINT': hub.url,
        'HF_HOME': str(folder / 'hf'),
        'TORCH_HOME': str(folder / 'torch'),
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_DOWNLOAD_TIMEOUT': '20',
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'OMP_NUM_THREADS': '1',
        'NO_PROXY': '127.0.0.1',
        'no_proxy': '127.0.0.1',
    }


def clean_environment(homes):
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'HUGGING', 'TRANSFORMERS'))
    }
    return {**kept, **homes}


class Client:
    """One process that a zygote forked."""

    def __init__(self, zygote, code, env, output):
        self.zygote, self.output = zygote, output
        self.process = self.ask({'code': code, 'env': env, 'output': str(output)})

    def ask(self, job):
        self.zygote.stdin.write(json.dumps(job) + '\n')
        self.zygote.stdin.flush()
        return int(self.zygote.stdout.readline())

    def wait(self):
        """(exit code, what it printed)."""
        return self.ask({'wait': self.process}), self.output.read_text()


@pytest.fixture(scope='session')
def start(homes, tmp_path_factory):
    """Start Python code, with the functions of `_zygote.py`, in a new process that has this Hub and these caches."""
    folder = tmp_path_factory.mktemp('outputs')
    with subprocess.Popen(
        [sys.executable, HERE / '_zygote.py'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(homes),
    ) as zygote:
        yield lambda code, **env: Client(zygote, code, env, folder / f'{len(list(folder.iterdir()))}.txt')
        zygote.stdin.close()


@pytest.fixture(scope='session')
def run(start):
    """As `start`, to the end: what it printed, by lines."""

    def run(code, **env):
        status, output = start(code, **env).wait()
        assert status == 0, output
        return output.splitlines()

    return run


@pytest.fixture(scope='session')
def cli(homes):
    """Run the command line in a process of its own: (exit code, stdout, stderr)."""

    def cli(*args, **env):
        command = [sys.executable, '-m', 'visionssm', *args]
        done = subprocess.run(command, env={**clean_environment(homes), **env}, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return cli


@pytest.fixture(scope='session')
def weights():
    """(the bytes of a checkpoint of `test_vim`, what `digest` says of a model with it), different for every seed."""

    def weights(seed=0, **more):
        torch.manual_seed(seed)
        state = timm.create_model('test_vim').state_dict()
        stream = io.BytesIO()
        torch.save({'model': state, **more}, stream)
        total = hashlib.sha256()
        for name, x in sorted(state.items()):
            total.update(name.encode() + x.numpy().tobytes())
        return stream.getvalue(), total.hexdigest()

    return weights
