import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visionssm.scans import get_scan, list_scans, scan_order, step_moves


class Sum(nn.Module):
    """Uses the table as models do: sizes from the input, the order a constant string."""

    def __init__(self, scan: str = 'snake'):
        super().__init__()
        self.scan = get_scan(scan).to_json()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        order = scan_order(self.scan, height, width, x)
        tokens = (x * self.weight).flatten(1, 2)
        return tokens[:, order.long()].cumsum(2).sum(1)


def _expected(model: Sum, x: Tensor) -> Tensor:
    table = torch.tensor(get_scan(model.scan).table(x.shape[1], x.shape[2])).long()
    return (x * model.weight).flatten(1, 2)[:, table].cumsum(2).sum(1)


SPECS = ['snake', 'multiscale', '{"name":"atrous","step":3}']  # H * W steps, more, fewer


@pytest.mark.parametrize('name', list_scans())
def test_op_returns_the_table(name):
    order = get_scan(name)
    like = torch.full((), float('nan'), dtype=torch.bfloat16)
    for spec in (name, order.to_json()):
        table = scan_order(spec, 5, 8, like)
        assert table.dtype == torch.int32 and table.device == like.device and table.is_contiguous()
        assert (table.numpy() == order.table(5, 8)).all()


def test_result_belongs_to_the_caller():
    like = torch.empty(0)
    scan_order('cross', 3, 3, like).zero_()
    assert (scan_order('cross', 3, 3, like).numpy() == get_scan('cross').table(3, 3)).all()


@pytest.mark.parametrize('transform', ['functionalize', 'grad', 'vmap'])
def test_table_first_built_in_a_transform_is_plain(transform):
    def total(x):
        return (x * scan_order('snake', 13, 3, x).sum()).sum()

    getattr(torch.func, transform)(total)(torch.ones(2))
    table = scan_order('snake', 13, 3, torch.empty(0))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(table) and not torch._is_functional_tensor(table)
    assert (table.numpy() == get_scan('snake').table(13, 3)).all()


def test_table_first_built_in_inference_mode_serves_training():
    like = torch.zeros(1)
    with torch.inference_mode():
        scan_order('spiral', 11, 3, like)
    table = scan_order('spiral', 11, 3, like)
    assert not table.is_inference()


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('requires_grad', [False, True])
def test_opcheck(spec, requires_grad):
    like = torch.zeros(2, 3, requires_grad=requires_grad)
    torch.library.opcheck(torch.ops.visionssm.scan_order.default, (spec, 4, 7, like))


@pytest.mark.parametrize('spec', SPECS)
def test_meta(spec):
    table = scan_order(spec, 5, 7, torch.empty(1, device='meta'))
    order = get_scan(spec)
    assert table.is_meta and table.dtype == torch.int32
    assert tuple(table.shape) == (order.directions, order.steps(5, 7))


def test_like_has_no_gradient_and_does_not_stop_that_of_others():
    model, x = Sum(), torch.randn(2, 4, 5, 3, requires_grad=True)
    assert not scan_order(model.scan, 4, 5, x).requires_grad
    model(x).square().sum().backward()
    grad, x.grad = x.grad, None
    _expected(model, x).square().sum().backward()
    torch.testing.assert_close(grad, x.grad)


@pytest.mark.parametrize('spec', SPECS[1:])
def test_compile_with_dynamic_sizes(spec):
    torch._dynamo.reset()
    model = Sum(spec)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in ((2, 4, 5, 3), (4, 7, 6, 3), (3, 9, 8, 3)):
        x = torch.randn(size, requires_grad=True)
        out = compiled(x)
        torch.testing.assert_close(out, _expected(model, x))
        out.sum().backward()
        assert x.grad is not None
    assert len(graphs) == 1


@pytest.mark.parametrize('spec', SPECS)
def test_export_with_dynamic_sizes(spec):
    model = Sum(spec)
    height, width = torch.export.Dim('height', min=2, max=64), torch.export.Dim('width', min=2, max=64)
    program = torch.export.export(model, (torch.randn(2, 6, 8, 3),), dynamic_shapes=({1: height, 2: width},))
    x = torch.randn(2, 7, 5, 3)
    torch.testing.assert_close(program.module()(x), _expected(model, x))


def test_script_and_fx():
    model = Sum()
    scripted, traced = torch.jit.script(model), torch.fx.symbolic_trace(model)
    for size in ((2, 4, 5, 3), (1, 7, 6, 3)):
        x = torch.randn(size)
        torch.testing.assert_close(scripted(x), _expected(model, x))
        torch.testing.assert_close(traced(x), _expected(model, x))


def test_bad_input():
    with pytest.raises(ValueError, match=r"unknown scan 'snak' \(did you mean 'snake'\?\)"):
        scan_order('snak', 4, 4, torch.zeros(1))
    with pytest.raises(ValueError, match='height is 0; allowed are integers from 1'):
        scan_order('snake', 0, 4, torch.zeros(1))


def test_moves_of_plainmamba():
    order = torch.tensor(get_scan('plainmamba').table(2, 3))
    expected = [[0, 1, 1, 4, 2, 2], [0, 1, 1, 3, 2, 2], [0, 4, 1, 3, 1, 4], [0, 3, 2, 4, 2, 3]]
    assert step_moves(order, 3).tolist() == expected


@pytest.mark.parametrize('height, width', [(1, 1), (1, 5), (5, 1), (5, 8), (14, 14)])
def test_moves_lead_along_the_path(height, width):
    table = get_scan('plainmamba').table(height, width)
    moves = step_moves(torch.tensor(table), width).numpy()
    assert (moves[:, 0] == 0).all() and (moves[:, 1:] > 0).all()
    shift = np.array([0, 1, -1, -width, width])
    assert (table[:, :1] + shift[moves].cumsum(1) == table).all()


def test_moves_of_jumps_are_0():
    assert step_moves(torch.tensor(get_scan('raster').table(2, 2)), 2).tolist() == [[0, 1, 0, 1]]
    assert step_moves(torch.tensor([[3, 3, 0]]), 2).tolist() == [[0, 0, 0]]


def test_moves_script_and_compile():
    order = torch.tensor(get_scan('plainmamba').table(4, 5))
    expected = step_moves(order, 5)
    assert torch.jit.script(step_moves)(order, 5).equal(expected)
    compiled = torch.compile(step_moves, fullgraph=True, dynamic=True, backend='aot_eager')
    assert compiled(order, 5).equal(expected)
