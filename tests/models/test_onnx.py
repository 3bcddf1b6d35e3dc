"""Models as ONNX files of standard operators, by torch's exporter as timm calls it, in onnxruntime and OpenVINO."""

import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch

import visionssm  # noqa: F401  registers the models

_OPENVINO = ('test_vim', 'test_a2mamba')  # a scan in pieces, neighbourhoods: what failed there once
# walks of different lengths where a map is odd
_WINDOWS = {'name': 'list', 'of': ['column', *({'name': 'local', 'window': side, 'pad': 'zero'} for side in (2, 3))]}


@pytest.mark.parametrize(
    ('name', 'args', 'sizes'),
    [
        ('test_vmamba', {}, [(64, 64), (96, 64)]),
        ('test_spatialmamba', {}, [(64, 64), (96, 75)]),
        ('test_mobilemamba', {}, [(128, 128), (192, 128)]),
        ('test_vcmamba', {}, [(96, 96), (128, 96)]),
        ('test_efficientvmamba', {}, [(64, 64), (92, 64)]),
        ('test_vim', {'depth': 1, 'dynamic_img_size': True}, [(64, 64), (96, 64)]),
        ('test_lbvim', {'depth': 2}, [(96, 96)]),
        ('test_plainmamba', {'depth': 1}, [(64, 64), (96, 64)]),
        ('test_groupmamba', {'depths': (1, 1, 1, 1)}, [(96, 96)]),
        ('test_a2mamba', {'depths': (1, 1, 1, 1)}, [(96, 96), (128, 96)]),
        ('test_localvim', {'depth': 2, 'scan': {'name': 'list', 'of': ['raster', 'column']}}, [(96, 96)]),
        ('test_localvmamba', {'scan': _WINDOWS}, [(32, 32), (48, 32)]),
        ('test_mambareg', {'depth': 2}, [(96, 96)]),
        ('test_mambavision', {'depths': (1, 1, 2, 1)}, [(64, 64), (96, 75), (32, 32)]),
    ],
)
def test_file_agrees(name, args, sizes, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, exportable=True, **args).eval().requires_grad_(False)
    axes = {0: 'batch'} if len(sizes) == 1 else {0: 'batch', 2: 'height', 3: 'width'}
    path = tmp_path / 'model.onnx'
    torch.onnx.export(
        model, torch.randn(1, 3, *sizes[0]), path, dynamo=False, input_names=['input0'], output_names=['output0'],
        dynamic_axes={'input0': axes, 'output0': {0: 'batch'}},
    )  # fmt: skip
    assert {node.domain for node in onnx.load(path).graph.node} == {''}
    session = onnxruntime.InferenceSession(path)
    programs = [lambda x: session.run(None, {'input0': x})[0]]
    if name in _OPENVINO:
        program = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
        programs.append(lambda x: program(x)[0])
    for size in sizes:
        x = torch.randn(3, 3, *size)
        expected = model(x)
        for run in programs:
            error = torch.from_numpy(run(x.numpy())) - expected
            assert error.abs().max() < 1e-4 * expected.std()
