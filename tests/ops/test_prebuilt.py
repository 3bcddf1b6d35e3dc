"""The library of a wheel: which one runs on which processor."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visionssm.catalog.machine import tools
from visionssm.ops import cpu, prebuilt

sys.path.append(str(Path(__file__).resolve().parents[2] / 'tools'))

from build_wheels import LEVELS, PLATFORMS, layout_checks  # noqa: E402

X86 = [name for name in prebuilt.NEEDS if name.startswith('x86')]
ARM = [name for name in prebuilt.NEEDS if name.startswith('arm')]
HASWELL = {'sse', 'ssse3', 'sse4_1', 'sse4_2', 'popcnt', 'avx', 'avx2', 'bmi', 'bmi2', 'f16c', 'fma3', 'lzcnt'}
SKYLAKE_X = HASWELL | {'avx512_f', 'avx512_bw', 'avx512_cd', 'avx512_dq', 'avx512_vl'}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Call it with the names of the libraries that are there and the features of the processor."""

    def install(names, features):
        for name in names:
            (tmp_path / f'{name}.so').touch()
        monkeypatch.setattr(prebuilt, 'FOLDER', tmp_path)
        monkeypatch.setattr(prebuilt, 'features', lambda: frozenset(features))

    monkeypatch.delenv('VISIONSSM_LIBRARY', raising=False)
    return install


@pytest.mark.parametrize(
    ('there', 'features', 'chosen'),
    [
        (X86, SKYLAKE_X, 'x86-64-v4'),
        (X86, SKYLAKE_X - {'avx512_dq'}, 'x86-64-v3'),  # Knights Landing
        (X86[1:], SKYLAKE_X, 'x86-64-v3'),
        (X86, HASWELL, 'x86-64-v3'),
        (X86, HASWELL - {'bmi2'}, 'x86-64-v2'),
        (X86, HASWELL - {'avx', 'avx2', 'f16c', 'fma3'}, 'x86-64-v2'),  # Rosetta 2
        (ARM, {'neon', 'bf16', 'dot'}, 'arm64-bf16'),
        (ARM, {'neon'}, 'arm64-neon'),
    ],
)
def test_the_best_that_the_processor_can_do(wheel, there, features, chosen):
    wheel(there, features)
    assert prebuilt.find().stem == chosen


def test_none_means_compile(wheel, monkeypatch):
    wheel([], SKYLAKE_X)
    assert prebuilt.find() is None
    wheel(X86, {'sse', 'sse2'})
    assert prebuilt.find() is None
    wheel(X86, SKYLAKE_X)
    monkeypatch.setenv('VISIONSSM_LIBRARY', 'compile')
    assert prebuilt.find() is None


def test_a_lower_one_on_request(wheel, monkeypatch):
    wheel(X86, HASWELL)
    monkeypatch.setenv('VISIONSSM_LIBRARY', 'x86-64-v2')
    assert prebuilt.find().stem == 'x86-64-v2'
    monkeypatch.setenv('VISIONSSM_LIBRARY', 'x86-64-v4')
    with pytest.raises(ValueError, match=r'lacks avx512_bw.*choose from x86-64-v3, x86-64-v2, compile'):
        prebuilt.find()
    monkeypatch.setenv('VISIONSSM_LIBRARY', 'arm64-neon')
    with pytest.raises(ValueError, match=r'no such library; choose from x86-64-v3, x86-64-v2, compile'):
        prebuilt.find()


def test_features_are_those_of_torch(monkeypatch):
    here = prebuilt.features()
    assert here & (frozenset().union(*prebuilt.NEEDS.values()) | {'neon'})
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    for capability, level in {'AVX512': 'x86-64-v4', 'AVX2': 'x86-64-v3', 'DEFAULT': 'x86-64-v2'}.items():
        monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda capability=capability: capability)
        assert prebuilt.features() == prebuilt.NEEDS[level]


def test_env_says_which_runs(wheel, tmp_path, monkeypatch):
    assert dict(tools())['C++ kernel'].startswith('compiled here: ')
    wheel([], prebuilt.features())
    name = next(name for name, needs in prebuilt.NEEDS.items() if needs <= prebuilt.features())
    shutil.copy(cpu.library()._name, tmp_path / f'{name}.so')
    cpu.library.cache_clear()
    try:
        assert dict(tools())['C++ kernel'] == f'prebuilt {name}'
        monkeypatch.setenv('VISIONSSM_LIBRARY', 'x86-64-v9')
        cpu.library.cache_clear()
        assert dict(tools())['C++ kernel'].startswith("none: VISIONSSM_LIBRARY names 'x86-64-v9'")
    finally:
        cpu.library.cache_clear()


def test_every_level_is_built_for_some_platform():
    assert {level for platform in PLATFORMS.values() for level in platform.levels} == set(prebuilt.NEEDS) == set(LEVELS)


def test_layout_checks_tell_a_struct_that_differs():
    def errors(checks):
        command = [*cpu.find_compiler(), '-std=c++17', '-fsyntax-only', '-x', 'c++', '-']
        return subprocess.run(command, input=checks, capture_output=True, text=True, check=False).stderr

    source = cpu.source()
    structs = '#include <cstdint>\n' + ''.join(
        source[at : source.index('};', at) + 2].replace('extern "C" ', '') + '\n'
        for at in (source.index(f'extern "C" struct {name}') for name in ('Scan', 'Attention', 'Depthwise'))
    )
    assert not errors(structs + layout_checks())
    assert 'Scan.batch' in errors(structs.replace('batch, length,', 'length, batch,', 1) + layout_checks())
