"""Neighbourhood attention against a loop over queries that follows the definition, in float64."""

import math
import sys
import types

import pytest
import torch

from visionssm.ops import (
    attention_cpu,
    available_backends,
    na_av,
    na_bias,
    na_qk,
    na_weights,
    natten,
    neighborhood,
    rows,
    use_backend,
)
from visionssm.ops.dispatch import TensorProblem, resolve

# height, width, window, dilation: sides equal to window * dilation, classes of unequal length, windows of 1
CASES = [
    (3, 3, 3, [1, 1]),
    (7, 9, 5, [1, 1]),
    (6, 9, 3, [2, 3]),
    (11, 14, 3, [3, 4]),
    (15, 23, 5, [3, 4]),
    (5, 4, 1, [5, 2]),
    (9, 12, 9, [1, 1]),
]
cases = pytest.mark.parametrize(('height', 'width', 'window', 'dilation'), CASES, ids=str)


def loop_axis(length, window, dilation):
    """Per position, [(key, bias index)]."""
    out = []
    for i in range(length):
        members = [j for j in range(length) if j % dilation == i % dilation]
        p = members.index(i)
        start = min(max(p - window // 2, 0), len(members) - window)
        out.append([(members[start + t], start + t - p + window - 1) for t in range(window)])
    return out


def loop_attention(q, k, v, table, window, dilation):
    """Logits with bias, and values averaged with their softmax, query by query."""
    height, width = q.shape[2:4]
    rows, columns = loop_axis(height, window, dilation[0]), loop_axis(width, window, dilation[1])
    logits, out = [], []
    for i in range(height):
        for j in range(width):
            pairs = [(row, column) for row in rows[i] for column in columns[j]]
            one = torch.stack(
                [(q[:, :, i, j] * k[:, :, y, x]).sum(-1) + table[:, b, c] for (y, b), (x, c) in pairs], -1
            )
            values = torch.stack([v[:, :, y, x] for (y, _), (x, _) in pairs], -2)
            logits.append(one)
            out.append((one.softmax(-1).unsqueeze(-1) * values).sum(-2))
    return torch.stack(logits, 2).unflatten(2, (height, width)), torch.stack(out, 2).unflatten(2, (height, width))


def inputs(height, width, window, dtype=torch.float64, batch=2, heads=2, channels=4, grad=True):
    """Queries, keys and values as a model has them, channels behind heads, and a bias table."""
    torch.manual_seed(0)
    q, k = (torch.randn(batch, height, width, heads, channels, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, height, width, heads, channels + 1, dtype=dtype)
    table = torch.randn(heads, 2 * window - 1, 2 * window - 1, dtype=dtype)
    q, k, v = (x.permute(0, 3, 1, 2, 4).detach().requires_grad_(grad) for x in (q, k, v))
    return q, k, v, table.requires_grad_(grad)


def attention(q, k, v, table, window, dilation):
    logits = na_qk(q, k, window, dilation) + na_bias(table, q.shape[2], q.shape[3], dilation)
    return logits, na_av(logits.softmax(-1), v, window, dilation)


@cases
def test_definition(height, width, window, dilation):
    args = inputs(height, width, window)
    expected = loop_attention(*args, window, dilation)
    got = attention(*args, window, dilation)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected[1])
    grads = [torch.autograd.grad((y[1] * weight).sum(), args) for y in (got, expected)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


@cases
def test_weights(height, width, window, dilation, monkeypatch):
    """In one pass where nobody could tell, and otherwise of the parts."""
    q, k, _, table = (x.detach().float() for x in inputs(height, width, window))
    expected = (na_qk(q, k, window, dilation) + na_bias(table, height, width, dilation)).softmax(-1)
    torch.testing.assert_close(na_weights(q, k, table.requires_grad_(), dilation), expected)
    called = []
    monkeypatch.setattr(neighborhood, 'na_bias', lambda *args: called.append(args) or na_bias(*args))
    with torch.no_grad():
        torch.testing.assert_close(na_weights(q, k, table, dilation), expected, rtol=2e-6, atol=1e-7)
        assert bool(called) == bool(available_backends(op='neighborhood')['cpu'])
        with use_backend('neighborhood=torch'):
            torch.testing.assert_close(na_weights(q, k, table, dilation), expected)
        assert called
        for bad in (math.inf, -math.inf, math.nan):
            table.view(-1)[0] = bad
            parts = (na_qk(q, k, window, dilation) + na_bias(table, height, width, dilation)).softmax(-1)
            torch.testing.assert_close(na_weights(q, k, table, dilation), parts, equal_nan=True)
        with pytest.raises(ValueError, match='the table is'):
            na_weights(q, k, table[:1, :-2, :-2], dilation)


@cases
def test_parts(height, width, window, dilation, monkeypatch):
    """One row at a time gives what all rows at once give."""
    args = inputs(height, width, window)
    expected = attention(*args, window, dilation)[1]
    expected_grads = torch.autograd.grad(expected.sum(), args)

    def one_by_one(self):
        for row in range(len(self.key_rows)):
            yield slice(row, row + 1), self.key_rows[row : row + 1]

    monkeypatch.setattr(rows._Rows, 'parts', one_by_one)
    got = attention(*args, window, dilation)[1]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), args), expected_grads)


@pytest.mark.parametrize('backend', ['cpu', 'torch'])
@pytest.mark.parametrize(
    ('dtype', 'bound'), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
def test_dtypes(dtype, bound, backend):
    args = inputs(15, 23, 5)
    expected = attention(*args, 5, [3, 4])[1]
    low = [x.detach().to(dtype).requires_grad_() for x in args]
    with use_backend(f'neighborhood={backend}'):
        got = attention(*low, 5, [3, 4])[1]
    assert got.dtype == dtype
    assert (got - expected).norm() < bound * expected.norm()
    grads = [torch.autograd.grad(y.square().sum(), x) for y, x in ((got, low), (expected, args))]
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() < 3 * bound * b.norm()


@pytest.mark.parametrize('channels', [1, 4, 17, 24, 48])
@pytest.mark.parametrize(('height', 'width', 'window', 'dilation'), [*CASES, (18, 20, 17, [1, 1])], ids=str)
def test_cpu(height, width, window, dilation, channels):
    """C++ and torch agree in all three operators, whatever the strides and the number of channels."""
    q, k, v, _ = inputs(height, width, window, torch.float32, channels=channels, grad=False)
    attn = torch.randn(2, 2, height, width, window * window).transpose(0, 1)
    for name, pair in (('na_qk', (q, k)), ('na_av', (attn, v)), ('na_av_transposed', (attn, v))):
        expected = getattr(rows, name)(*(x.double() for x in pair), window, dilation)
        got = getattr(attention_cpu, name)(*pair, window, dilation)
        assert (got - expected).norm() < 1e-6 * expected.norm(), name


@pytest.mark.parametrize('threads', [1, 2, 3, 5])
def test_cpu_threads(threads, monkeypatch):
    """Heads, and parts of them, give the same on any number of threads."""
    q, k, v, _ = (x[:1] for x in inputs(15, 23, 5, torch.float32, channels=24, grad=False))
    attn = torch.randn(1, 2, 15, 23, 25)
    monkeypatch.setattr(attention_cpu, '_PRODUCTS_PER_THREAD', 1)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    for name, pair in (('na_qk', (q, k)), ('na_av', (attn, v)), ('na_av_transposed', (attn, v))):
        expected = getattr(rows, name)(*(x.double() for x in pair), 5, [3, 4])
        got = getattr(attention_cpu, name)(*pair, 5, [3, 4])
        assert (got - expected).norm() < 1e-6 * expected.norm(), name


def test_cpu_by_itself():
    """It is taken for all that it can: not for float64, and not without a compiler."""
    assert resolve('neighborhood', '', TensorProblem('cpu', torch.float32)) is attention_cpu
    assert resolve('neighborhood', '', TensorProblem('cpu', torch.float64)) is rows
    q, k, _, _ = inputs(6, 9, 3)
    with pytest.raises(RuntimeError, match='cpu.*was asked for.*not torch.float64'):
        na_qk(q, k, 3, [1, 1], backend='cpu')


def test_cpu_empty():
    q, k, v, _ = inputs(6, 9, 3, torch.float32)
    assert na_qk(q[:0], k[:0], 3, [1, 1]).shape == (0, 2, 6, 9, 9)
    assert na_av(torch.rand(0, 2, 6, 9, 9), v[:0], 3, [1, 1]).shape == (0, 2, 6, 9, 5)


def test_autocast_leaves_the_dtype():
    q, k, v, _ = inputs(7, 9, 5, torch.float32)
    expected = na_av(na_qk(q, k, 5, [1, 1]), v, 5, [1, 1])
    with torch.autocast('cpu', torch.bfloat16):
        got = na_av(na_qk(q, k, 5, [1, 1]), v, 5, [1, 1])
    assert torch.equal(got, expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('name', ['na_qk', 'na_av'])
def test_op(name, dtype):
    q, k, v, _ = inputs(6, 9, 3, dtype)
    first, second = (q, k) if name == 'na_qk' else (torch.rand(2, 2, 6, 9, 9, dtype=q.dtype, requires_grad=True), v)
    op = getattr(torch.ops.visionssm, name).default
    torch.library.opcheck(op, (first, second, 3, [2, 3]))
    torch.library.opcheck(torch.ops.visionssm.neighbors.default, (9, 3, 3, q))


def test_bad_input():
    q, k, v, _ = inputs(6, 9, 3)
    with pytest.raises(ValueError, match='side of 6 with window 3 and dilation 3'):
        na_qk(q, k, 3, [3, 3])
    with pytest.raises(ValueError, match='dilation 0'):
        na_qk(q, k, 3, [0, 1])
    with pytest.raises(ValueError, match='window is 4'):
        na_qk(q, k, 4, [1, 1])
    with pytest.raises(ValueError, match=r'\(2, 2, 6, 9, 4\) and \(2, 2, 5, 9, 4\)'):
        na_qk(q, k[:, :, 1:], 3, [1, 1])
    with pytest.raises(ValueError, match='both must be alike'):
        na_qk(q, q.bfloat16(), 3, [1, 1])
    with pytest.raises(ValueError, match='on meta; both must be alike'):
        na_qk(q, q.to('meta'), 3, [1, 1])
    with pytest.raises(TypeError, match='tensors are torch.int32'):
        na_qk(q.int(), q.int(), 3, [1, 1])
    with pytest.raises(ValueError, match='9 last'):
        na_av(q, v, 3, [1, 1])
    with pytest.raises(ValueError, match="'flash'; choose from natten, cpu, torch"):
        na_qk(q, k, 3, [1, 1], backend='flash')


@pytest.fixture
def fake_natten(monkeypatch):
    """A module in NATTEN's place that notes its calls; found anew by each test."""
    calls = []
    functional = types.ModuleType('natten.functional')

    class WeightedSum(torch.autograd.Function):  # as NATTEN's own: recorded also where torch's operators are not
        @staticmethod
        def forward(ctx, attn, value, kernel_size, dilation):
            ctx.save_for_backward(attn)
            ctx.window = kernel_size, list(dilation)
            return rows.na_av(attn, value, *ctx.window)

        @staticmethod
        def backward(ctx, grad):
            return None, rows.na_av_transposed(*ctx.saved_tensors, grad, *ctx.window), None, None

    def na2d_qk(query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None):
        calls.append(('qk', kernel_size, dilation))
        assert query.is_contiguous() and key.is_contiguous()
        return rows.na_qk(query, key, kernel_size, list(dilation))

    def na2d_av(attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False):
        calls.append(('av', kernel_size, dilation))
        assert attn.is_contiguous() and value.is_contiguous()
        return WeightedSum.apply(attn, value, kernel_size, dilation)

    functional.na2d_qk, functional.na2d_av = na2d_qk, na2d_av
    monkeypatch.setitem(sys.modules, 'natten', types.ModuleType('natten'))
    monkeypatch.setitem(sys.modules, 'natten.functional', functional)
    forget()
    yield calls, functional
    forget()


def forget():
    """Look for NATTEN anew."""
    natten._functions.cache_clear()
    resolve.cache_clear()


def test_natten_by_name(fake_natten, monkeypatch):
    calls, _ = fake_natten
    args = inputs(6, 9, 3)
    expected = attention(*args, 3, [2, 3])[1]
    assert not calls  # not by itself on a CPU
    monkeypatch.setenv('VISIONSSM_NEIGHBORHOOD_BACKEND', 'natten')
    got = attention(*args, 3, [2, 3])[1]
    assert calls == [('qk', 3, (2, 3)), ('av', 3, (2, 3))]
    assert torch.equal(got, expected)
    got_grads, expected_grads = (torch.autograd.grad(y.sum(), args) for y in (got, expected))
    torch.testing.assert_close(got_grads, expected_grads)
    calls.clear()
    na_qk(args[0], args[1], 3, [1, 1], backend='torch')  # the argument goes first
    assert not calls


def test_natten_by_itself(fake_natten):
    """On CUDA it is taken without being asked for."""
    assert resolve('neighborhood', '', TensorProblem('cuda', torch.float32)) is natten
    assert resolve('neighborhood', 'torch', TensorProblem('cuda', torch.float32)) is rows


def test_natten_too_new(fake_natten):
    _, functional = fake_natten
    del functional.na2d_qk
    q, k, _, _ = inputs(6, 9, 3)
    assert resolve('neighborhood', '', TensorProblem('cuda', torch.float32)) is rows
    with pytest.raises(RuntimeError, match='natten.*was asked for.*0.20 dropped'):
        na_qk(q, k, 3, [1, 1], backend='natten')


def test_natten_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'natten', None)
    forget()
    q, k, _, _ = inputs(6, 9, 3)
    with pytest.raises(RuntimeError, match='natten.*was asked for.*natten cannot be imported'):
        na_qk(q, k, 3, [1, 1], backend='natten')
    forget()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@cases
def test_gpu(height, width, window, dilation):
    args = inputs(height, width, window)
    expected = attention(*args, window, dilation)[1]
    on_gpu = [x.detach().cuda().requires_grad_() for x in args]
    got = attention(*on_gpu, window, dilation)[1]
    torch.testing.assert_close(got.cpu(), expected)
    grads = [torch.autograd.grad(y.square().sum(), x) for y, x in ((got, on_gpu), (expected, args))]
    torch.testing.assert_close([g.cpu() for g in grads[0]], list(grads[1]))
