"""A new family is its file and its record: a copy of one, from a temporary folder, passes what goes over all families.

`docs/adding-a-family.md` tells the same by hand.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = """
import dataclasses

import visionssm
from visionssm.weights.published import FAMILIES, add_family


def copied(x):
    return dataclasses.replace(x, model=x.model.replace('vmamba', 'copied'))


family = FAMILIES['vmamba']
models = {name.replace('vmamba', 'copied'): facts for name, facts in family.models.items()}
add_family(
    dataclasses.replace(family, key='copied', title='A copy', models=models, files=tuple(map(copied, family.files)))
)
import copied as module
"""
CARD = """
import sys
from pathlib import Path

import copied_record

sys.path.append('tools')
from cards.pages import family_files
from visionssm.cli import main

print(*family_files('copied', Path('results')).values(), sep='\\n')
assert main(['list', 'copied_*']) == main(['info', 'copied_tiny_s1l8']) == main(['weights', 'copied_*']) == 0
"""


def run(folder, *command):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), str(ROOT), os.environ.get('PYTHONPATH', '')])}
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    return result.stdout


def copy_family(folder):
    source = (ROOT / 'visionssm' / 'models' / 'vmamba.py').read_text()
    source = re.sub(r'^from \.(\w+) import', r'from visionssm.models.\1 import', source, flags=re.M)
    (folder / 'copied.py').write_text(source.replace('vmamba', 'copied').replace('VMamba', 'Copied'))
    (folder / 'copied_record.py').write_text(RECORD)


def test_copied_family(tmp_path):
    copy_family(tmp_path)
    suite = ['tests/models/test_models.py', 'tests/models/test_weights_read.py', 'tests/test_published.py']
    out = run(tmp_path, '-m', 'pytest', '-p', 'copied_record', '-p', 'no:cacheprovider', *suite, '-k', 'copied or many')
    assert int(re.search(r'(\d+) passed', out)[1]) > 80 and 'failed' not in out
    out = run(tmp_path, '-m', 'pytest', '-p', 'copied_record', '-p', 'no:cacheprovider', 'tests/test_configs.py')
    assert 'failed' not in out


def test_copied_family_is_described(tmp_path):
    copy_family(tmp_path)
    out = run(tmp_path, '-c', CARD)
    assert '# A copy' in out and '`copied_tiny_s1l8`' in out and 'direction 3' in out  # page and walks
    assert re.search(r'copied_tiny_s1l8\.in1k +30\.2 +', out)  # list
    assert 'copied_tiny_s1l8.mask_rcnn_1x_coco' in out  # weights
