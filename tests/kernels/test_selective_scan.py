"""The Triton backend against the definition in fp64: outputs, last state and every gradient."""

from typing import NamedTuple

import pytest
import torch

from visionssm.ops import selective_scan_ref
from visionssm.ops.dispatch import BACKENDS, ScanProblem
from visionssm.ops.inputs import ScanInputs
from visionssm.scans import get_scan, list_scans
from visionssm.testing import assert_close

kernels = pytest.importorskip('visionssm_kernels.selective_scan')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
MERGED, PER_DIRECTION, PER_STEP = 0, 1, 2
NAMES = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')


class Case(NamedTuple):
    batch: int = 1
    length: int = 9
    directions: int = 2
    channels: int = 20
    d_state: int = 3
    dtype: torch.dtype = torch.float32
    shared: bool = True
    gate: bool = False
    plain: bool = False  # no D, no bias
    scalar_a: bool = False
    softplus: bool = True
    mode: int = MERGED
    window: int = 0
    last: bool = False


def make_inputs(case: Case) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    batch, length, directions, channels, d_state, dtype = case[:6]
    delta = normal(batch, length, directions, channels) * 0.5 - 1
    inputs = {
        'u': normal(*((batch, length, channels) if case.shared else (batch, length, directions, channels))).to(dtype),
        'delta': (delta if case.softplus else delta.abs() * 0.3).to(dtype),
        'A': -torch.rand((directions, channels, 1 if case.scalar_a else d_state), generator=generator) - 0.1,
        'B': normal(batch, length, directions, d_state).to(dtype),
        'C': normal(batch, length, directions, d_state).to(dtype),
        'D': None if case.plain else normal(directions, channels),
        'z': normal(batch, length, channels).to(dtype) if case.gate else None,
        'delta_bias': None if case.plain else normal(directions, channels) * 0.1,
    }
    return {name: x if x is None else x.to(DEVICE) for name, x in inputs.items()}


def check(case: Case, order=None, param_order=None, inputs=None):
    """Compare forward and backward with the reference."""
    inputs = inputs or make_inputs(case)
    doubles = {name: x if x is None else x.double().cpu().requires_grad_() for name, x in inputs.items()}
    merge, per_step = case.mode == MERGED, case.mode == PER_STEP
    expected, expected_last = selective_scan_ref(
        *doubles.values(), case.softplus, order=order, param_order=param_order, merge=merge, per_step=per_step,
        local_window=case.window or None, return_last_state=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(expected.shape, generator=generator).to(case.dtype)
    grad_state = torch.randn(expected_last.shape, generator=generator) if case.last else None
    loss = (expected * grad_out.double()).sum()
    if case.last:
        loss = loss + (expected_last * grad_state.double()).sum()
    present = {name: x for name, x in doubles.items() if x is not None}
    expected_grads = torch.autograd.grad(loss, list(present.values()), allow_unused=True)

    order, param_order = (x if x is None else x.to(DEVICE) for x in (order, param_order))
    arguments = ScanInputs(
        **inputs,
        order=order,
        param_order=param_order,
        delta_softplus=case.softplus,
        mode=case.mode,
        local_window=case.window,
        return_last_state=case.last,
    )
    out, last = kernels.forward(arguments)
    assert out.dtype == case.dtype and out.is_contiguous()
    assert_close('out', out, expected)
    if case.last:
        assert last.is_contiguous()
        assert_close('last state', last, expected_last)
    else:
        assert last.shape == (0,) and last.dtype == torch.float32

    grad_state = None if grad_state is None else grad_state.to(DEVICE)
    grads = kernels.backward((grad_out.to(DEVICE), grad_state), arguments)
    assert [name for name, grad in zip(NAMES, grads, strict=True) if grad is not None] == list(present)
    grads = [grad for grad in grads if grad is not None]
    for (name, x), grad, wanted in zip(present.items(), grads, expected_grads, strict=True):
        assert grad.dtype == inputs[name].dtype and grad.shape == x.shape and grad.is_contiguous(), name
        wanted = torch.zeros_like(x) if wanted is None else wanted
        assert_close(f'gradient of {name}', grad, wanted, dtype=case.dtype, grad=True)
    return out, grads


def visits(directions: int, length: int, steps: int, dtype=torch.int32) -> torch.Tensor:
    """An order that comes to some tokens several times and to some never."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, length, (directions, steps), generator=generator, dtype=dtype)


@pytest.fixture
def chunked(monkeypatch):
    """Make every scan run in chunks of 8 steps, unless chunks are ruled out."""
    rule = kernels.choose_plan

    def plan(*args, **kwargs):
        found = rule(*args, **kwargs)
        if kwargs['sequential']:
            return found
        window = max(kwargs['window'], 1)
        chunk = -(-8 // window) * window
        return found._replace(chunk=chunk, segment=chunk)

    monkeypatch.setattr(kernels, 'choose_plan', plan)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('length', [1, 2, 15, 16, 17])
def test_lengths(length):
    check(Case(length=length, directions=1, batch=2, last=True))


def test_length_49():
    check(Case(length=49, directions=1, d_state=16, gate=True))


def test_length_196_runs_in_chunks():
    plan = kernels.choose_plan(1, 1, 20, 1, 196)
    assert plan.chunk == 64
    check(Case(length=196, directions=1, d_state=1))


@pytest.mark.parametrize('directions', [1, 2, 4])
@pytest.mark.parametrize('d_state', [1, 3, 16])
def test_states_and_directions(d_state, directions):
    check(Case(length=6, d_state=d_state, directions=directions, gate=True, last=True))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('d_state', [1, 16])
def test_dtypes(dtype, d_state):
    check(Case(dtype=dtype, d_state=d_state, gate=True), order=torch.stack([torch.arange(9), torch.arange(9).flip(0)]))


def test_fp32_delta_with_fp16_tokens():
    case = Case(dtype=torch.float16)
    inputs = make_inputs(case)
    inputs['delta'] = inputs['delta'].float()
    check(case, inputs=inputs)


@pytest.mark.parametrize('name', list_scans())
def test_scan_orders(name):
    table = torch.from_numpy(get_scan(name).table(3, 4).copy())
    check(Case(length=12, directions=table.shape[0], d_state=1), order=table)


@pytest.mark.parametrize('window', [4, 8, 16])
@pytest.mark.parametrize('d_state', [1, 3])
def test_local_window(window, d_state):
    check(Case(length=18, directions=1, d_state=d_state, window=window, gate=d_state == 3, last=True))


def test_local_window_in_chunks(chunked):
    check(Case(length=19, directions=1, window=4, last=True))


def test_local_window_in_another_order():
    check(Case(length=7, window=5, mode=PER_DIRECTION), order=visits(2, 7, 11))


@pytest.mark.parametrize('mode', [MERGED, PER_DIRECTION, PER_STEP])
@pytest.mark.parametrize('shared', [True, False])
def test_modes_with_repeated_visits(mode, shared):
    case = Case(length=8, mode=mode, shared=shared, gate=True, last=True)
    check(case, order=visits(2, 8, 11))


@pytest.mark.parametrize('mode', [MERGED, PER_DIRECTION, PER_STEP])
def test_chunks_with_repeated_visits(mode, chunked):
    check(Case(length=12, mode=mode, gate=True, last=True), order=visits(2, 12, 18))


@pytest.mark.parametrize('order_dtype', [torch.int32, torch.int64])
def test_parameters_in_another_order(order_dtype):
    check(
        Case(d_state=16), order=visits(2, 9, 9, order_dtype), param_order=torch.arange(9).repeat(2, 1).to(order_dtype)
    )


def test_parameter_order_alone():
    check(Case(directions=1), param_order=visits(1, 9, 9))


@pytest.mark.parametrize('d_state', [5, 64])
def test_scalar_decay(d_state):
    check(Case(length=5, d_state=d_state, scalar_a=True, last=True))


def test_plain_and_without_softplus():
    check(Case(plain=True, softplus=False))


def test_more_than_one_channel_block():
    check(Case(channels=70, length=4, d_state=16))


def test_states_themselves():
    """A2Mamba's form: all states of a d_state = 1 scan are its output for C = 1."""
    case = Case(length=6, directions=1, d_state=1, plain=True)
    inputs = make_inputs(case)
    inputs['C'] = torch.ones_like(inputs['C'])
    out, _ = check(case, inputs=inputs)
    dt = torch.nn.functional.softplus(inputs['delta'][:, 0, 0])
    torch.testing.assert_close(out[:, 0], dt * inputs['B'][:, 0, 0] * inputs['u'][:, 0])


@pytest.mark.parametrize('kind', ['permuted', 'expanded', 'slices', 'transposed'])
def test_strides(kind):
    case = Case(batch=2, length=5, directions=2, d_state=3)
    inputs = make_inputs(case)
    if kind == 'permuted':
        inputs['delta'] = inputs['delta'].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    elif kind == 'expanded':
        inputs['delta'] = inputs['delta'][:, :, :1].expand(-1, -1, 2, -1)
        inputs['B'] = inputs['B'][:, :, :1].expand(-1, -1, 2, -1)
    elif kind == 'slices':
        projected = torch.randn(2, 5, 2, 4 + 2 * 3, device=DEVICE)
        _, inputs['B'], inputs['C'] = projected.split([4, 3, 3], -1)
    else:
        inputs['u'] = inputs['u'].transpose(1, 2).contiguous().transpose(1, 2)
        inputs['delta'] = inputs['delta'].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    check(case, inputs=inputs)


def test_expanded_gradient():
    inputs = make_inputs(Case())
    arguments = ScanInputs(*inputs.values(), None, None, True, MERGED, 0, False)
    grads = [
        kernels.backward((grad, None), arguments)
        for grad in (torch.ones((), device=DEVICE).expand(1, 9, 20), torch.ones(1, 9, 20, device=DEVICE))
    ]
    for a, b in zip(*grads, strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize('mode', [MERGED, PER_DIRECTION, PER_STEP])
def test_empty_batch_and_no_steps(mode):
    for case, order in ((Case(batch=0, mode=mode), None), (Case(mode=mode), visits(2, 9, 0))):
        inputs = make_inputs(case)
        arguments = ScanInputs(*inputs.values(), order, None, True, mode, 0, True)
        out, last = kernels.forward(arguments)
        reference, reference_last = selective_scan_ref(
            *inputs.values(), True, order=order, merge=mode == MERGED, per_step=mode == PER_STEP, return_last_state=True
        )
        assert out.shape == reference.shape and last.shape == reference_last.shape
        assert not out.any() and not last.any()
        grads = kernels.backward((torch.zeros_like(out), None), arguments)
        for x, grad in zip(inputs.values(), grads, strict=True):
            assert grad is x is None or (grad.shape == x.shape and not grad.any())


def test_64_bit_offsets(monkeypatch):
    monkeypatch.setattr(kernels._Inputs, 'wide', lambda self, *outputs: True)
    check(Case(length=5, gate=True), order=visits(2, 5, 6), param_order=visits(2, 5, 6))
    check(Case(length=5, window=4))


def test_64_bit_offsets_are_used_from_2_to_31():
    def wide(length):
        u = torch.empty(1, length, 1024, device='meta')
        delta, b = torch.empty(1, length, 1, 1024, device='meta'), torch.empty(1, length, 1, 1, device='meta')
        rates = torch.empty(1, 1024, 1, device='meta')
        inputs = ScanInputs(u, delta, rates, b, b, None, None, None, None, None, True, MERGED, 0, False)
        return kernels._Inputs(inputs).wide()

    assert not wide(2**20)
    assert wide(2**21)


@pytest.mark.parametrize('mode', [MERGED, PER_DIRECTION])
def test_deterministic(mode, deterministic, monkeypatch):
    kinds = []
    target = kernels._target
    monkeypatch.setattr(kernels, '_target', lambda *args, **kwargs: kinds.append(target(*args, **kwargs)) or kinds[-1])
    case = Case(length=6, directions=4, channels=140, d_state=1, mode=mode, gate=True)
    order = visits(4, 6, 8)
    first = check(case, order=order)
    assert kinds and all(made.kind != kernels.ATOMIC for made in kinds)
    second = check(case, order=order)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_deterministic_in_chunks(deterministic, chunked, monkeypatch):
    kinds = []
    target = kernels._target
    monkeypatch.setattr(kernels, '_target', lambda *args, **kwargs: kinds.append(target(*args, **kwargs)) or kinds[-1])
    check(Case(length=17, d_state=1))
    assert {made.kind for made in kinds} == {kernels.STORE}


def test_marks_of_repeated_visits():
    order = torch.tensor([[2, 0, 2, 1, 2], [0, 1, 2, 3, 4]], dtype=torch.int32, device=DEVICE)
    forward, visitor = kernels._visits(order, 5, first=True)
    assert forward.tolist() == [[2, 0, ~2, 1, ~2], [0, 1, 2, 3, 4]]
    assert (visitor == 0).tolist() == [[False, False, False, True, True], [False] * 5]
    backward, _ = kernels._visits(order, 5, first=False)
    assert backward.tolist() == [[~2, 0, ~2, 1, 2], [0, 1, 2, 3, 4]]


def test_plan_rule():
    plan = kernels.choose_plan
    assert plan(128, 4, 384, 1, 784) == (128, 0, 8, 4, 1)  # enough programs: sequential, widest blocks
    assert plan(128, 4, 192, 1, 3136).block_d == 64  # 128 would pad 192 channels by a third
    assert plan(128, 4, 384, 16, 784).block_d == 64  # the state is to stay in registers
    assert plan(128, 4, 384, 16, 784, backward=True) == (32, 0, 16, 1, 1)
    assert plan(128, 4, 192, 64, 784).warps == 2
    assert plan(1, 4, 192, 1, 16384).chunk == 256  # few programs, many steps: chunks
    assert plan(1, 2, 192, 16, 196).chunk == 64
    assert plan(1, 2, 192, 16, 127).chunk == 0  # not two chunks
    assert plan(1, 2, 192, 16, 16384, sequential=True).chunk == 0
    assert plan(1, 1, 192, 16, 16384, window=24).chunk % 24 == 0
    assert plan(128, 1, 768, 16, 784, window=24, backward=True).segment % 24 == 0
    assert plan(8, 4, 384, 1, 784, multiprocessors=8).chunk == 0  # a small device is full sooner
    for d_state in range(1, 65):
        for channels in (1, 16, 96, 100, 768):
            for backward in (False, True):
                found = plan(2, 2, channels, d_state, 64, backward=backward)
                assert found.block_d in (16, 32, 64, 128)
                assert found.segment % found.unroll == 0


def test_refusals():
    problem = ScanProblem('cpu', torch.float32, 16, 64, 0)
    assert kernels.refuse(problem) == ''
    assert 'float64' in kernels.refuse(problem._replace(dtype=torch.float64))
    assert '65' in kernels.refuse(problem._replace(d_state=65))
    if not torch.cuda.is_available():
        assert 'driver' in kernels.refuse(problem._replace(device='cuda'))
        (triton,) = (backend for backend in BACKENDS if backend.name == 'triton')
        assert 'serves cuda' in triton.refuses(problem)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('d_state', [1, 16])
@pytest.mark.parametrize('batch', [1, 64])
def test_large(dtype, d_state, batch):
    """Sizes at which real plans, several channel blocks and many programs come together."""
    table = torch.from_numpy(get_scan('cross').table(14, 14).copy())
    check(
        Case(batch=batch, length=196, directions=4, channels=192, d_state=d_state, dtype=dtype, gate=True), order=table
    )


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('mode', [PER_DIRECTION, MERGED])
def test_large_with_repeated_visits(mode):
    """What the interpreter can't show: loads that run ahead must not miss what earlier steps have written."""
    check(Case(batch=64, length=16, directions=1, channels=192, d_state=1, mode=mode), order=visits(1, 16, 256))


@pytest.mark.parametrize('value', [float('inf'), -float('inf'), float('nan')])
@pytest.mark.parametrize('name', ['A', 'delta', 'delta_bias'])
@pytest.mark.parametrize('softplus', [True, False])
def test_rates_and_steps_that_are_not_finite(softplus, name, value):
    """What is infinite, what is NaN and what stays finite is as in the definition, in windows and without."""
    for window in (0, 2):
        case = Case(length=4, directions=1, channels=2, d_state=2, gate=True, softplus=softplus, window=window)
        tensors = make_inputs(case)
        if not softplus:
            tensors['delta_bias'] = tensors['delta_bias'].abs()
        tensors[name].view(-1)[4 if name == 'delta' else 0] = value  # the first token of the second window
        leaves = {key: x.clone().requires_grad_() for key, x in tensors.items()}
        out, last = selective_scan_ref(
            **leaves, delta_softplus=softplus, local_window=window or None, return_last_state=True
        )
        expected = [out, last, *torch.autograd.grad(out.sum() + last.sum(), list(leaves.values()))]
        inputs = ScanInputs(**tensors, order=None, param_order=None, delta_softplus=softplus, mode=MERGED,
                            local_window=window, return_last_state=True)  # fmt: skip
        out, last = kernels.forward(inputs)
        found = [out, last, *kernels.backward((torch.ones_like(out), torch.ones_like(last)), inputs)]
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(*(torch.where(z.isfinite(), 0.0, z) for z in (x, y)), equal_nan=True)
