"""The scan in plain operators against the definition."""

import onnx
import onnxruntime
import openvino
import pytest
import torch

from visionssm.ops import export, selective_scan_ref


def inputs(length, directions, channels, d_state, batch=2):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    shape = (batch, length, directions)
    A = -torch.exp(draw(directions, channels, d_state))
    order = torch.stack([torch.randperm(length, generator=g) for _ in range(directions)])
    tensors = (
        draw(batch, length, channels), draw(*shape, channels), A, draw(*shape, d_state), draw(*shape, d_state),
        draw(directions, channels), draw(batch, length, channels), draw(directions, channels),
    )  # fmt: skip
    return tensors, order


@pytest.mark.parametrize(('length', 'd_state'), [(1, 1), (7, 4), (16, 1), (197, 4), (400, 1)])
@pytest.mark.parametrize('mode', [0, 1, 2])
@pytest.mark.parametrize('window', [0, 4, 5])
def test_scan_is_the_definition(length, d_state, mode, window):
    tensors, order = inputs(length, 2, 6, d_state)
    expected = selective_scan_ref(
        *tensors, True, order=order, merge=mode == 0, per_step=mode == 2, local_window=window or None
    )
    out = export.scan(*tensors, order, None, True, mode, window)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


class Scan(torch.nn.Module):
    def __init__(self, A, window):
        super().__init__()
        self.A, self.window = A, window

    def forward(self, u, delta, B, C):
        if torch.onnx.is_in_onnx_export():
            return export.scan(u, delta, self.A, B, C, None, None, None, None, None, True, 0, self.window)
        return selective_scan_ref(u, delta, self.A, B, C, delta_softplus=True, local_window=self.window or None)


@pytest.mark.parametrize(
    ('d_state', 'window', 'channels', 'dynamo'),
    [(3, 0, 6, False), (1, 0, 6, False), (3, 4, 6, False), (3, 0, 384, False), (3, 0, 6, True), (1, 4, 384, True)],
)
def test_file_takes_other_lengths(d_state, window, channels, dynamo, tmp_path):
    def draw(length, batch):
        u, delta, A, B, C = inputs(length, 2, channels, d_state, batch)[0][:5]
        return A, (u, delta, B, C)

    A, example = draw(40, 2)
    module, names, path = Scan(A, window), ['u', 'delta', 'B', 'C'], tmp_path / 'scan.onnx'
    axes = {0: 'batch', 1: 'length'}
    given = {'dynamic_shapes': (axes,) * 4} if dynamo else {'dynamic_axes': dict.fromkeys(names, axes)}
    torch.onnx.export(module, example, path, dynamo=dynamo, input_names=names, verbose=False, **given)
    assert 'Scan' in {node.op_type for node in onnx.load(path).graph.node}
    session = onnxruntime.InferenceSession(path)
    for length in (1, 5, 64, 300):
        given = draw(length, 3)[1]
        out = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})[0]
        torch.testing.assert_close(torch.from_numpy(out), module(*given), rtol=1e-4, atol=1e-5)


class Sum(torch.nn.Module):
    def __init__(self, merge):
        super().__init__()
        self.merge = merge

    def forward(self, token, rows):
        return export.add_rows(9, token, rows, self.merge)


@pytest.mark.parametrize(('merge', 'dynamo'), [(True, False), (False, False), (True, True)])
def test_no_node_adds_to_a_place_twice(merge, dynamo, tmp_path):
    """onnxruntime adds on several threads, and loses what two of them add to the same place."""
    g = torch.Generator().manual_seed(0)
    once = torch.rand(9, 2, generator=g).argsort(0)
    twice = torch.cat([once, once[:3], torch.full((1, 2), 9)])  # 9: dropped
    path, names, axes = tmp_path / 'sum.onnx', ['token', 'rows'], {0: 'steps'}
    given = {'dynamic_shapes': (axes,) * 2} if dynamo else {'dynamic_axes': dict.fromkeys(names, axes)}
    example = twice, torch.randn(len(twice), 2, 4)
    torch.onnx.export(Sum(merge), example, path, dynamo=dynamo, input_names=names, verbose=False, **given)
    file = onnx.load(path)
    added = [node for node in file.graph.node if node.op_type == 'ScatterND']
    kinds = [onnx.helper.make_tensor_value_info(node.input[1], onnx.TensorProto.INT64, None) for node in added]
    file.graph.output.extend(kinds)
    session = onnxruntime.InferenceSession(file.SerializeToString())
    for token in (once, twice, torch.randint(10, (30, 2), generator=g), torch.zeros(5, 2).long()):
        rows = torch.randn(*token.shape, 4, generator=g)
        out, *places = session.run(None, {'token': token.numpy(), 'rows': rows.numpy()})
        k = torch.arange(2)
        expected = torch.zeros(10, 2, 4).index_put((token, k), rows, accumulate=True)[:9]
        torch.testing.assert_close(torch.from_numpy(out), expected.sum(1) if merge else expected)
        for place in places:
            place = place[place < (9 if merge else 18)]
            assert len(set(place)) == len(place)
    assert added


def test_openvino_adds_along_constant_walks(tmp_path):
    token = torch.tensor([[0, 2], [1, 1], [2, 0], [1, 2]])
    module, rows, path = Sum(True), torch.randn(4, 2, 3), tmp_path / 'sum.onnx'
    module.forward = lambda rows: export.add_rows(4, token, rows)
    torch.onnx.export(module, rows, path, dynamo=False, input_names=['rows'])
    out = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(rows.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(out), module(rows))


def test_softplus():
    x = torch.linspace(-80, 80, 10001, dtype=torch.float64)
    expected = torch.nn.functional.softplus(x, threshold=1000)
    assert ((export.softplus(x.float()).double() - expected) / expected).abs().max() < 1e-5
    torch.testing.assert_close(export.softplus(x), expected, rtol=3e-7, atol=0)
