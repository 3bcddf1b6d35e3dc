"""The scan op: every backend against the fp64 definition, forward and all gradients; the op under torch's compilers."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from visionssm.ops import chunked, scan_tokens, selective_scan, selective_scan_fn, selective_scan_ref, use_backend
from visionssm.ops.inputs import ScanInputs
from visionssm.scans import get_scan, list_scans
from visionssm.testing import assert_close

BACKENDS = ['torch', 'cpu']
PARAMETERS = ('A', 'D', 'delta_bias')


@pytest.fixture(autouse=True)
def poison():
    """Fill uninitialised memory with NaN: an element that a kernel forgot shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(B=2, L=13, K=2, D=6, N=3, *, shared=True, z=False, scalar=False, dtype=torch.float32, seed=0):
    """Random tensors of a scan in `dtype`; parameters in fp32 (fp64 for fp64)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        'u': normal(B, L, D) if shared else normal(B, L, K, D),
        'delta': normal(B, L, K, D),
        'A': -torch.exp(normal(K, D, 1 if scalar else N)),
        'B': normal(B, L, K, N),
        'C': normal(B, L, K, N),
        'D': normal(K, D),
        'z': normal(B, L, D) if z else None,
        'delta_bias': normal(K, D),
    }
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {k: x if x is None else x.to(wide if k in PARAMETERS else dtype) for k, x in tensors.items()}


def orders(L, K, kind, T=None, seed=0):
    """None, a permutation per direction, or T random visits per direction."""
    generator = torch.Generator().manual_seed(seed)
    if kind == 'none':
        return None
    if kind == 'permuted':
        return torch.stack([torch.randperm(L, generator=generator) for _ in range(K)])
    return torch.randint(0, L, (K, T or L + 3), generator=generator, dtype=torch.int32)


def results(tensors, backend, **kwargs):
    """Output, last state and every gradient of a fixed random loss over both."""
    leaves = {k: None if x is None else x.detach().clone().requires_grad_() for k, x in tensors.items()}
    out, state = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend, **kwargs)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in (out, state)
    )
    names = [k for k, x in leaves.items() if x is not None]
    grads = torch.autograd.grad(loss, [leaves[k] for k in names])
    return {'out': out, 'state': state, **dict(zip(names, grads, strict=True))}


def check(tensors, backend, **kwargs):
    """Compare `backend` with the reference run in fp64 on the same values."""
    dtype = tensors['u'].dtype
    expected = results({k: None if x is None else x.double() for k, x in tensors.items()}, 'reference', **kwargs)
    for name, actual in results(tensors, backend, **kwargs).items():
        assert actual.dtype == (torch.float32 if name == 'state' and dtype != torch.float64 else actual.dtype)
        # the reference gets exact values; half precision rounds outputs and gradients of tensors in that dtype
        assert_close(f'{backend} {name}', actual, expected[name], dtype, grad=name not in ('out', 'state'))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', ['none', 'permuted', 'repeated'])
@pytest.mark.parametrize('mode', ['merged', 'directions', 'steps'])
@pytest.mark.parametrize('N,scalar', [(1, False), (3, False), (16, False), (8, True)])
@pytest.mark.parametrize(
    'shared,z,window', [(True, False, None), (False, True, None), (True, True, 4), (False, False, 5)]
)
def test_against_reference(backend, kind, mode, N, scalar, shared, z, window):
    tensors = problem(L=19, D=20, N=N, shared=shared, z=z, scalar=scalar)
    check(
        tensors,
        backend,
        order=orders(19, 2, kind),
        merge=mode == 'merged',
        per_step=mode == 'steps',
        local_window=window,
    )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=['fp64', 'bf16', 'fp16'])
@pytest.mark.parametrize('mode', ['merged', 'directions', 'steps'])
@pytest.mark.parametrize('kind', ['permuted', 'repeated'])
def test_dtypes(backend, dtype, mode, kind):
    if backend == 'cpu' and dtype == torch.float64:
        with pytest.raises(RuntimeError, match='fp32'):
            selective_scan(**problem(dtype=dtype), backend='cpu')
        return
    for shared, z, K in ((True, True, 2), (False, False, 1)):
        tensors = problem(L=21, D=36, N=4, K=K, shared=shared, z=z, dtype=dtype)
        check(tensors, backend, order=orders(21, K, kind), merge=mode == 'merged', per_step=mode == 'steps')


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('L', [1, 2, 63, 64, 196, 1000])
@pytest.mark.parametrize('N', [1, 8, 16])
def test_lengths(backend, L, N, monkeypatch):
    monkeypatch.setattr(chunked, '_CHUNK_ELEMENTS', 1)  # many chunks
    check(problem(B=1, L=L, K=1, D=17, N=N, z=True), backend, order=orders(L, 1, 'permuted'))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('window', [1, 3, 8, 16])
def test_windows_over_chunks(backend, window, monkeypatch):
    monkeypatch.setattr(chunked, '_CHUNK_ELEMENTS', 1)
    check(problem(B=1, L=901, K=1, D=5, N=2), backend, local_window=window)


@pytest.mark.parametrize('N', [1, 3, 16])
@pytest.mark.parametrize('window', [None, 3])
@pytest.mark.parametrize('D', [6, 112])
def test_states_before_chunks(D, window, N, monkeypatch):
    monkeypatch.setattr(ScanInputs, 'chunk', 6)
    check(problem(B=1, L=21, D=D, N=N), 'cpu', order=orders(21, 2, 'permuted'), local_window=window)


@pytest.mark.parametrize('kept', [torch.empty(0), torch.full((2, 2, 2, 3, 6), torch.nan)], ids=['not asked', 'none'])
def test_backward_without_states_of_the_forward_pass(kept):
    tensors = problem(L=300)
    inputs = ScanInputs(**tensors, order=None, param_order=None, delta_softplus=True, mode=0, local_window=0,
                        return_last_state=False, keep_starts=True)  # fmt: skip
    assert inputs.starts_shape == (2, 2, 2, 3, 6)
    out, _, starts = torch.ops.visionssm.selective_scan(*inputs, 'cpu')
    expected, found = (
        torch.ops.visionssm.selective_scan_backward(torch.ones_like(out), None, x, *inputs, 'cpu')
        for x in (starts, kept)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('D', [1, 15, 16, 17, 31, 63, 96, 130])  # full vectors of 4, 8 and 16, with and without a rest
def test_channels(backend, D):
    check(problem(L=9, K=4, D=D, N=1), backend, order=torch.from_numpy(get_scan('cross').table(3, 3).copy()))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', list_scans())
def test_every_scan_order(backend, name):
    order = torch.from_numpy(get_scan(name).table(4, 5).copy())
    check(problem(L=20, K=order.shape[0], D=8, N=2), backend, order=order)


@pytest.mark.parametrize('backend', BACKENDS)
def test_parameters_of_other_tokens(backend):
    # PlainMamba: u follows the order, delta, B and C do not
    order = orders(19, 2, 'permuted')
    for params in (torch.arange(19).expand(2, 19), orders(19, 2, 'repeated', T=19)):
        check(problem(L=19, N=4, z=True), backend, order=order, param_order=params)


@pytest.mark.parametrize('backend', BACKENDS)
def test_strided_inputs(backend):
    tensors = problem(L=11, K=3, D=24, N=4, z=True)
    strided = dict(tensors)
    strided['delta'] = tensors['delta'].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)  # (K, B, L, D) memory
    wide = torch.randn(2, 11, 3, 10)
    wide[..., 2:6], wide[..., 6:] = tensors['B'], tensors['C']
    strided['B'], strided['C'] = wide[..., 2:6], wide[..., 6:]  # slices of one projection
    strided['u'] = tensors['u'].transpose(0, 1).contiguous().transpose(0, 1)
    strided['z'] = tensors['z'].mT.contiguous().mT  # channels apart
    order = orders(11, 3, 'permuted').mT.contiguous().mT
    expected = selective_scan_ref(**tensors, delta_softplus=True, order=order)
    assert_close('strided', selective_scan(**strided, delta_softplus=True, order=order, backend=backend), expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_shared_delta_is_expanded_not_copied(backend):
    tensors = problem(L=11, K=3, D=24, N=4)
    delta = tensors['delta'][:, :, :1].clone().requires_grad_()
    tensors['delta'] = delta.expand(-1, -1, 3, -1)
    out = selective_scan(**tensors, delta_softplus=True, backend=backend)
    expected = selective_scan_ref(**tensors, delta_softplus=True)
    assert_close('out', out, expected)
    grads = [torch.autograd.grad(x.sum(), delta, retain_graph=True)[0] for x in (out, expected)]
    assert_close('delta', *grads, grad=True)


@pytest.mark.parametrize('backend', BACKENDS)
def test_heads(backend):
    tensors = problem(L=9, D=4, N=8, scalar=True)
    generator = torch.Generator().manual_seed(3)
    tensors['u'] = torch.randn(2, 9, 12, generator=generator)  # 4 heads of 3 channels
    tensors['D'] = torch.randn(2, 12, generator=generator)
    wide = dict(tensors)
    for name, axis in (('delta', 3), ('A', 1), ('delta_bias', 1)):
        wide[name] = tensors[name].repeat_interleave(3, axis)
    out = selective_scan(**tensors, delta_softplus=True, backend=backend)
    assert_close('heads', out, selective_scan_ref(**wide, delta_softplus=True))


@pytest.mark.parametrize('backend', BACKENDS)
def test_empty(backend):
    for B, L in ((0, 5), (2, 0)):
        tensors = {k: x if x is None else x.requires_grad_() for k, x in problem(B=B, L=L).items()}
        out, state = selective_scan(**tensors, return_last_state=True, backend=backend)
        assert out.shape == (B, L, 6) and state.shape == (B, 2, 6, 3) and not state.any()
        (out.sum() + state.sum()).backward()
        assert tensors['A'].grad is not None and not tensors['A'].grad.any()


@pytest.mark.parametrize('backend', BACKENDS)
def test_unvisited_tokens_are_zero(backend):
    out = selective_scan(**problem(L=6, K=1), order=torch.tensor([[4, 1]]), backend=backend)
    assert not out[:, [0, 2, 3, 5]].any() and out[:, [1, 4]].any()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', ['u', 'delta', 'A', 'B', 'C', 'D'])
def test_nan_is_not_hidden(backend, name):
    tensors = problem(L=7, K=1, N=2)
    tensors[name].view(-1)[0] = float('nan')
    assert selective_scan(**tensors, delta_softplus=True, backend=backend).isnan().any()


@pytest.mark.parametrize('backend', BACKENDS)
def test_extreme_steps(backend):
    tensors = problem(L=50, K=1)
    tensors['delta'] *= 60  # decays of 0 and of almost 1, softplus in its linear part
    check(tensors, backend)


@pytest.mark.parametrize('backend', BACKENDS)
def test_only_the_state_is_used(backend):
    tensors = {k: x if x is None else x.requires_grad_() for k, x in problem().items()}
    selective_scan(**tensors, return_last_state=True, backend=backend)[1].sum().backward()
    assert tensors['B'].grad.any() and not tensors['C'].grad.any()


def test_gradcheck_in_fp64():
    tensors = problem(B=1, L=5, K=2, D=2, N=2, z=True, dtype=torch.float64)
    order = orders(5, 2, 'repeated', T=6)

    def function(*args):
        return selective_scan(*args, True, order=order, local_window=3, return_last_state=True, backend='torch')

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in tensors.values()])


def test_threads_give_the_same():
    tensors, order = problem(B=3, L=50, D=80, N=16, z=True), orders(50, 2, 'permuted')
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(results(tensors, 'cpu', order=order))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(runs[0][k], other[k]) for k in ('out', 'state', 'u', 'delta', 'A'))


# ---- under torch's compilers ----


class Scan(torch.nn.Module):
    """A module that scans, as the models do."""

    def __init__(self, window: int = 0):
        super().__init__()
        self.window = window
        self.A_log = torch.nn.Parameter(torch.randn(2, 6, 3))
        self.D = torch.nn.Parameter(torch.randn(2, 6))

    def forward(self, u: torch.Tensor, delta: torch.Tensor, B: torch.Tensor, C: torch.Tensor, order: torch.Tensor):
        """Scan two directions."""
        return scan_tokens(
            u=u, delta=delta, A=-torch.exp(self.A_log), B=B, C=C, D=self.D, order=order, local_window=self.window
        )


def module_inputs(B=2, L=12):
    t = problem(B=B, L=L)
    return [t[k] for k in ('u', 'delta', 'B', 'C')] + [orders(L, 2, 'permuted')]


@pytest.mark.parametrize('mode', [0, 1, 2])
def test_opcheck(mode):
    keep_starts = mode != 1
    t = problem(L=5, z=True)
    args = [x.requires_grad_() for x in t.values()]
    args += [orders(5, 2, 'permuted'), None, True, mode, 0, True, keep_starts, '']
    torch.library.opcheck(torch.ops.visionssm.selective_scan.default, args)


def test_compile_fullgraph_with_dynamic_shapes():
    module = Scan()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend='aot_eager')
    for B, L in ((2, 12), (3, 20), (1, 7)):
        inputs = module_inputs(B, L)
        leaves = [[x.clone().requires_grad_() for x in inputs[:4]] for _ in range(2)]
        outs = [f(*x, inputs[4]) for f, x in zip((module, compiled), leaves, strict=True)]
        assert_close('compiled', outs[1], outs[0])
        for out in outs:
            out.square().sum().backward()
        for a, b in zip(*leaves, strict=True):
            assert_close('gradient', b.grad, a.grad, grad=True)


def test_export():
    inputs = module_inputs()
    program = torch.export.export(Scan(), tuple(inputs))
    assert 'visionssm.selective_scan' in str(program.graph)
    module = program.module()
    assert module(*inputs).shape == inputs[0].shape


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning')
def test_script_fx_checkpoint_meta():
    module, inputs = Scan(), module_inputs()
    expected = module(*inputs)
    assert torch.equal(torch.jit.script(module)(*inputs), expected)
    tracer = torch.fx.Tracer(autowrap_functions=(scan_tokens,))
    graph = tracer.trace(module)
    assert torch.equal(torch.fx.GraphModule(module, graph)(*inputs), expected)
    u = inputs[0].clone().requires_grad_()
    checkpoint(module, u, *inputs[1:], use_reentrant=False).sum().backward()
    again = inputs[0].clone().requires_grad_()
    module(again, *inputs[1:]).sum().backward()
    assert torch.equal(u.grad, again.grad)
    assert module.to('meta')(*(x.to('meta') for x in inputs)).shape == expected.shape


def test_autocast_is_left_alone():
    with torch.autocast('cpu', torch.bfloat16):
        assert selective_scan(**problem()).dtype == torch.float32
        half = problem(dtype=torch.bfloat16)
        half['delta'] = half['delta'].float()
        assert selective_scan(**half).dtype == torch.bfloat16


# ---- bad input ----


@pytest.mark.parametrize(
    'change,error,message',
    [
        ({'A': torch.zeros(2, 6, 3, dtype=torch.complex64)}, TypeError, 'complex'),
        ({'u': torch.zeros(2, 13, 6, dtype=torch.int32)}, TypeError, 'int32'),
        ({'B': torch.zeros(2, 13, 2, 3, dtype=torch.float64)}, TypeError, 'float64'),
        ({'delta': torch.zeros(2, 13, 2, 6, dtype=torch.bfloat16)}, TypeError, 'bfloat16'),
        ({'u': torch.zeros(13, 6)}, ValueError, r'\(13, 6\)'),
        ({'delta': torch.zeros(2, 12, 2, 6)}, ValueError, r'delta has shape \(2, 12, 2, 6\)'),
        ({'delta': torch.zeros(2, 13, 2, 4)}, ValueError, 'does not divide'),
        ({'C': torch.zeros(2, 13, 2, 4)}, ValueError, 'C has shape'),
        ({'A': torch.zeros(2, 6, 2)}, ValueError, 'A has shape'),
        ({'D': torch.zeros(6)}, ValueError, 'D has shape'),
        ({'z': torch.zeros(2, 13, 5)}, ValueError, 'z has shape'),
        ({'delta_bias': torch.zeros(6)}, ValueError, 'delta_bias has shape'),
        ({'u': torch.zeros(2, 13, 6, device='meta')}, ValueError, 'meta'),
        ({'order': torch.zeros(3, 13, dtype=torch.long)}, ValueError, 'order has shape'),
        ({'order': torch.zeros(2, 13)}, TypeError, 'order is torch.float32'),
        ({'order': torch.full((2, 4), 13)}, ValueError, r'13\.\.13; allowed are 0\.\.12'),
        ({'order': torch.full((2, 4), -1)}, ValueError, '-1'),
        ({'param_order': torch.zeros(2, 4, dtype=torch.long)}, ValueError, 'param_order has 4 steps'),
        ({'per_step': True}, ValueError, 'merge=False'),
        ({'local_window': 0}, ValueError, 'local_window is 0'),
        ({'local_window': 1.5}, ValueError, 'local_window is 1.5'),
        ({'u': 'x'}, TypeError, 'u is a str; it must be a tensor'),
        ({'order': [[0]]}, TypeError, 'order is a list; it must be a tensor'),
        ({'backend': 'cuda'}, ValueError, 'triton, cpu, torch, reference'),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**{**problem(), **change})


def test_backend_by_context_and_environment(monkeypatch):
    with pytest.raises(ValueError, match='unknown backend'), use_backend('gpu'):
        pass
    monkeypatch.setenv('VISIONSSM_BACKEND', 'nonsense')
    with pytest.raises(ValueError, match='VISIONSSM_BACKEND'):
        selective_scan(**problem())
    with use_backend('torch'):  # wins over the environment
        selective_scan(**problem())
    monkeypatch.setenv('VISIONSSM_BACKEND', 'triton')
    with pytest.raises(RuntimeError, match="'triton' was asked for"):
        selective_scan(**problem())


# ---- mamba-ssm's interface ----


def mamba_definition(u, delta, A, B, C, D, z, bias, softplus):
    """The recurrence of arXiv:2312.00752 in mamba's layout, one number at a time."""
    u, delta, A, B, C = (x.double() for x in (u, delta, A, B, C))
    batch, channels, length = u.shape

    def at(x, b, d, t):  # the N weights of channel d at step t
        if x.ndim == 2:
            return x[d]
        return x[b, :, t] if x.ndim == 3 else x[b, d * x.shape[1] // channels, :, t]

    if bias is not None:
        delta = delta + bias.double()[:, None]
    if softplus:
        delta = torch.nn.functional.softplus(delta)
    out, last = torch.zeros_like(u), torch.zeros(batch, channels, A.shape[1], dtype=torch.float64)
    for b in range(batch):
        for d in range(channels):
            h = torch.zeros(A.shape[1], dtype=torch.float64)
            for t in range(length):
                h = torch.exp(delta[b, d, t] * A[d]) * h + delta[b, d, t] * at(B, b, d, t) * u[b, d, t]
                out[b, d, t] = at(C, b, d, t) @ h + (D[d] * u[b, d, t] if D is not None else 0)
            last[b, d] = h
    return out if z is None else out * torch.nn.functional.silu(z.double()), last


@pytest.mark.parametrize('b_shape', ['constant', 'tokens', 'grouped'])
@pytest.mark.parametrize('c_shape', ['constant', 'tokens', 'grouped'])
def test_selective_scan_fn(b_shape, c_shape):
    batch, channels, length, N, groups = 2, 6, 7, 3, 2
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    shapes = {'constant': (channels, N), 'tokens': (batch, N, length), 'grouped': (batch, groups, N, length)}
    u, delta, z = (normal(batch, channels, length) for _ in range(3))
    args = [u, delta, -torch.exp(normal(channels, N)), normal(*shapes[b_shape]), normal(*shapes[c_shape])]
    D, bias = normal(channels), normal(channels)
    out, last = selective_scan_fn(*args, D, z, bias, True, True)
    expected, expected_last = mamba_definition(*args, D, z, bias, True)
    assert_close('out', out, expected, torch.float32)
    assert_close('last state', last, expected_last, torch.float32)
    assert torch.equal(selective_scan_fn(*args), selective_scan_fn(*args, None, None, None, False, False))


def test_selective_scan_fn_bad_input():
    u = torch.zeros(2, 6, 7)
    A = -torch.ones(6, 3)
    with pytest.raises(TypeError, match='complex'):
        selective_scan_fn(u, u, A.to(torch.complex64), torch.zeros(2, 3, 7), torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match='A has shape'):
        selective_scan_fn(u, u, A[:5], torch.zeros(2, 3, 7), torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match='G dividing 6'):
        selective_scan_fn(u, u, A, torch.zeros(2, 4, 3, 7), torch.zeros(2, 3, 7))


@pytest.mark.parametrize('name', ['order', 'param_order'])
def test_orders_are_where_the_tokens_are(name):
    with pytest.raises(ValueError, match=f'{name} is on meta and the tokens are on cpu'):
        selective_scan(**problem(L=4), **{name: torch.zeros(2, 4, dtype=torch.int32, device='meta')})


@pytest.mark.parametrize('backend', BACKENDS)
def test_rates_that_are_almost_infinite(backend):
    tensors = problem(L=4)
    tensors['A'] = torch.full_like(tensors['A'], -2.5e38)
    tensors['delta'] = torch.full_like(tensors['delta'], -120.0)
    expected = selective_scan(**tensors, delta_softplus=True, backend='reference')
    assert expected.isfinite().all()
    assert_close('output', selective_scan(**tensors, delta_softplus=True, backend=backend), expected)


@pytest.mark.parametrize('backend', [*BACKENDS, 'reference'])
@pytest.mark.parametrize('name', ['order', 'param_order'])
@pytest.mark.parametrize('dtype', [torch.int32, torch.int64], ids=str)
def test_positions_out_of_range_are_told_of_the_right_table(backend, name, dtype):
    for position in (-1, 4) if dtype == torch.int32 else (-1, 4, 1 + 2**32):
        table = torch.tensor([[0, 1, 2, position], [0, 1, 2, 3]], dtype=dtype)
        with pytest.raises(ValueError, match=rf'^{name} visits tokens .*allowed are 0\.\.3'):
            selective_scan(**problem(L=4), **{name: table}, backend=backend)


@pytest.mark.parametrize('backend', BACKENDS)
def test_windows_longer_than_the_walk(backend):
    tensors = problem(L=5)
    expected = selective_scan(**tensors, delta_softplus=True, local_window=5, backend='reference')
    got = selective_scan(**tensors, delta_softplus=True, local_window=10**8, backend=backend)
    assert_close('window', got, expected)
    empty = problem(B=0, L=5)
    assert selective_scan(**empty, local_window=3, backend=backend).shape == (0, 5, 6)


@pytest.mark.parametrize('shape', [(6, 3), (2, 3, 7), (2, 2, 3, 7)], ids=['constant', 'tokens', 'grouped'])
def test_selective_scan_fn_checks_the_rest(shape):
    u, A, B = torch.randn(2, 6, 7), -torch.ones(6, 3), torch.randn(shape)
    for name, bad in (
        ('z', torch.ones(5, 1, 1, 1)),
        ('z', torch.ones(2, 6, 8)),
        ('D', torch.ones(2, 3)),
        ('D', torch.ones(5)),
        ('delta_bias', torch.ones(7)),
    ):
        with pytest.raises(ValueError, match=f'^{name} has shape'):
            selective_scan_fn(u, u, A, B, B, **{name: bad})
    half = u.bfloat16()
    z = torch.randn(2, 6, 7)
    assert selective_scan_fn(half, half, A, B, B, z=z).dtype == torch.bfloat16
    with pytest.raises(TypeError, match='z is torch.bfloat16 and u is torch.float32'):
        selective_scan_fn(u, u, A, B, B, z=z.bfloat16())


@pytest.mark.parametrize('heads', [7, 14, 112], ids='of {} heads'.format)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_states_that_decay_alike(dtype, heads):
    """As many channels as several vectors and one more hold, steps that are no multiple of a run, heads of a vector."""
    tensors = problem(L=38, D=112, N=20, scalar=True, z=True, dtype=dtype)
    tensors |= {k: tensors[k][..., :heads] for k in ('delta', 'delta_bias')} | {'A': tensors['A'][:, :heads]}
    found = []
    for backend in ('cpu', 'reference'):
        leaves = {k: x.clone().requires_grad_() for k, x in tensors.items()}
        options = {'order': orders(38, 2, 'again'), 'return_last_state': True, 'delta_softplus': True}
        out, state = selective_scan(**leaves, **options, backend=backend)
        total = (out.float() * torch.arange(112.0).sin()).sum() + state.sum()
        found.append([out, state, *torch.autograd.grad(total, list(leaves.values()))])
    for got, expected in zip(*found, strict=True):
        error = (got - expected).float().abs().max() / expected.float().abs().max()
        assert error < (1e-5 if got.dtype == torch.float32 == dtype else 0.02)


@pytest.mark.parametrize('value', [float('inf'), -float('inf'), float('nan')])
@pytest.mark.parametrize('name', ['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias'])
@pytest.mark.parametrize('softplus', [True, False])
def test_values_that_are_not_finite(softplus, name, value):
    """What is infinite, what is NaN and what stays finite is the same on every backend, in every gradient."""
    for place, window, rates in ((0, None, 2), (-1, None, 1), (4, 2, 2), (2, 2, 1)):
        tensors = problem(B=1, L=4, K=1, D=2, N=2, z=True)
        tensors['A'] = tensors['A'][..., :rates].clone()
        if not softplus:
            tensors.update({name: tensors[name].abs() * 0.3 for name in ('delta', 'delta_bias')})
        flat = tensors[name].view(-1)
        flat[place % len(flat)] = value

        def kinds(backend, tensors=tensors, window=window):
            leaves = {k: x.clone().requires_grad_() for k, x in tensors.items()}
            options = {'delta_softplus': softplus, 'local_window': window, 'return_last_state': True}
            out, state = selective_scan(**leaves, **options, backend=backend)
            found = [out, state, *torch.autograd.grad(out.sum() + state.sum() / 2, list(leaves.values()))]
            return [torch.where(x.isfinite(), 0.0, x) for x in found]

        expected = kinds('reference')
        for backend in BACKENDS:
            torch.testing.assert_close(kinds(backend), expected, equal_nan=True)


@pytest.mark.parametrize('backend', BACKENDS)
def test_infinite_rates_and_steps(backend):
    """The limit of the scan where there is one, NaN where there is none."""
    tensors = problem(B=1, L=4, K=1, D=2, N=2, z=True)
    for rate, limit in ((-float('inf'), -1e4), (float('inf'), float('nan'))):
        results = []
        for value in (rate, limit):
            leaves = {k: x.clone() for k, x in tensors.items()}
            leaves['A'][0, 0, 0] = value
            leaves = {k: x.requires_grad_() for k, x in leaves.items()}
            out = selective_scan(**leaves, delta_softplus=True, backend=backend)
            results.append([out, *torch.autograd.grad(out.sum(), list(leaves.values()))])
        torch.testing.assert_close(*results, equal_nan=True, rtol=1e-4, atol=1e-4)
    tensors['delta'][0, 1, 0, 0] = -float('inf')
    out = selective_scan(**tensors, backend=backend)
    assert out[0, 0].isfinite().all() and out[0, 1:, 0].isnan().all() and out[..., 1].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_gate_in_full_precision_is_not_rounded(backend, dtype):
    tensors = problem(L=5, z=True)
    tensors['u'] = tensors['u'].to(dtype)
    results = []
    for name in ('reference', backend):
        leaves = {k: x.clone().requires_grad_() for k, x in tensors.items()}
        out = selective_scan(**leaves, delta_softplus=True, backend=name)
        assert out.dtype == dtype
        results.append(torch.autograd.grad(out.float().sum(), leaves['z'])[0])
    assert_close('gradient of z', *reversed(results))


@pytest.mark.parametrize('backend', BACKENDS)
def test_an_infinitely_fast_decay_forgets(backend):
    tensors = problem(L=5, K=1, N=2)
    tensors['A'] = torch.full_like(tensors['A'], -float('inf'))
    limit = {**tensors, 'A': torch.full_like(tensors['A'], -1e30)}
    out, expected = (selective_scan(**t, delta_softplus=True, backend=backend) for t in (tensors, limit))
    assert_close('out', out, expected)
