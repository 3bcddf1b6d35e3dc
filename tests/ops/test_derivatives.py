"""Derivatives of every kind: forward mode, gradients of gradients, and torch.func's transforms, nested."""

from functools import partial

import pytest
import timm
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import visionssm.ops.products as products
from visionssm.layers import linear
from visionssm.ops import na_av, na_qk, selective_scan

BACKENDS = ['torch', 'cpu', 'reference']
FAMILIES = [
    'test_vim', 'test_vmamba', 'test_groupmamba', 'test_a2mamba', 'test_plainmamba', 'test_lbvim', 'test_msvmamba',
    'test_mambavision',
]  # fmt: skip
OPS = torch.ops.visionssm


def scan_inputs(dtype=torch.float64, batch=1, length=4, channels=2, directions=2, states=2):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        normal(batch, length, channels),
        normal(batch, length, directions, channels),
        -torch.exp(normal(directions, channels, states)),
        normal(batch, length, directions, states),
        normal(batch, length, directions, states),
        normal(directions, channels),
        normal(batch, length, channels),
        normal(directions, channels),
    )


def scan(*tensors, backend='torch', **options):
    options.setdefault('order', torch.tensor([[0, 2, 2, 3, 1], [3, 1, 0, 2, 0]]))
    return selective_scan(*tensors, True, backend=backend, **options)


@pytest.mark.parametrize(
    'options', [{}, {'merge': False, 'local_window': 3}, {'merge': False, 'per_step': True, 'return_last_state': True}]
)
def test_gradgradcheck_of_the_scan(options):
    tensors = [x.requires_grad_() for x in scan_inputs()]
    assert torch.autograd.gradcheck(lambda *x: scan(*x, **options), tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: scan(*x, **options), tensors, fast_mode=True)


@pytest.mark.parametrize('backend', BACKENDS)
def test_tangent_of_the_scan(backend):
    tensors = scan_inputs(torch.float32)
    tangents = [torch.randn(x.shape) for x in tensors]
    doubles = [x.double() for x in tensors]
    _, expected = jvp(lambda *x: scan(*x, backend='reference'), tuple(doubles), tuple(t.double() for t in tangents))
    _, got = jvp(lambda *x: scan(*x, backend=backend), tensors, tuple(tangents))
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(tensors, tangents, strict=True)]
        got = forward_ad.unpack_dual(scan(*duals, backend=backend)).tangent
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backend', ['torch', 'cpu'])
def test_transforms_of_the_scan(backend):
    u, *rest = scan_inputs(torch.float32)

    def loss(u, backend=backend):
        return scan(u, *rest, backend=backend).square().sum()

    for transform in (grad, jacrev, jacfwd, hessian):
        torch.testing.assert_close(
            transform(loss)(u), transform(lambda u: loss(u, 'reference'))(u), rtol=1e-3, atol=1e-3
        )
    samples = torch.randn(3, *u.shape)
    for function in (loss, grad(loss)):
        torch.testing.assert_close(
            vmap(function)(samples), torch.stack([function(x) for x in samples]), rtol=1e-4, atol=1e-4
        )
    rates = torch.stack([rest[1], 2 * rest[1]])  # parameters of their own per sample
    got = vmap(lambda u, A: scan(u, rest[0], A, *rest[2:], backend=backend), in_dims=(None, 0))(u, rates)
    torch.testing.assert_close(got[1], scan(u, rest[0], rates[1], *rest[2:], backend=backend))

    def inner(u):  # reverse mode over another variable inside of forward mode
        return grad(lambda w: (scan(u, *rest, backend=backend) * w).sum())(torch.ones_like(u))

    direction = torch.randn_like(u)
    _, got = jvp(inner, (u,), (direction,))
    torch.testing.assert_close(got, jvp(lambda u: scan(u, *rest, backend=backend), (u,), (direction,))[1])


def bilinear():
    q, k, v = (torch.randn(1, 2, 4, 5, channels, dtype=torch.float64) for channels in (3, 3, 2))
    weights = torch.rand(1, 2, 4, 5, 9, dtype=torch.float64)
    return {
        'na_qk': (lambda a, b: na_qk(a, b, 3, [1, 1]), q, k),
        'na_av': (lambda a, b: na_av(a, b, 3, [1, 1]), weights, v),
    }


@pytest.mark.parametrize('name', ['na_qk', 'na_av'])
def test_neighbourhood_attention(name):
    function, *tensors = bilinear()[name]
    leaves = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    a, b = (x.detach() for x in tensors)
    many = torch.stack([a, 2 * a])
    torch.testing.assert_close(vmap(function, (0, None))(many, b), torch.stack([function(x, b) for x in many]))
    torch.testing.assert_close(jacrev(function)(a, b), jacfwd(function)(a, b))


def test_linear(monkeypatch):
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    expected = [t(torch.nn.functional.linear, (0, 1, 2))(x, weight, bias) for t in (jacrev, jacfwd)]
    monkeypatch.setattr(products, '_LEAST_WORK', 0)
    got = [t(linear, (0, 1, 2))(x, weight, bias) for t in (jacrev, jacfwd)]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    per_sample = vmap(grad(lambda w, x: linear(x, w, bias).square().sum()), (None, 0))(weight, x)
    assert per_sample.shape == (3, 5, 4)
    _, pull = vjp(linear, x, weight, bias)
    assert [g.shape for g in pull(torch.ones(3, 5))] == [x.shape, weight.shape, bias.shape]


def test_opcheck():
    u, delta, A, B, C, D, z, bias = (x.float() for x in scan_inputs())
    order = torch.tensor([[0, 2, 2, 3, 1], [3, 1, 0, 2, 0]])
    tail = (order, None, True, 0, 2, True, True, '')
    grads = torch.randn_like(u), torch.randn(1, 2, 2, 2), torch.empty(0)
    for absent in ((D, z, bias), (None, None, None)):
        torch.library.opcheck(OPS.selective_scan_backward.default, (*grads, u, delta, A, B, C, *absent, *tail))
    q, k, v = torch.randn(3, 1, 2, 4, 5, 3)
    weights = torch.rand(1, 2, 4, 5, 9)
    for op, pair in ((OPS.na_qk, (q, k)), (OPS.na_av, (weights, v)), (OPS.na_av_transposed, (weights, v))):
        torch.library.opcheck(op.default, (*(x.clone().requires_grad_() for x in pair), 3, [1, 1]))


def test_tangents_of_tangents(monkeypatch):
    """Forward mode within forward mode; torch switches it off in the `jvp` of an `autograd.Function`."""
    monkeypatch.setattr(products, '_LEAST_WORK', 0)
    tensors = scan_inputs()

    def scaled(c, backend='reference', dtype=torch.float64):
        return scan(*((c * x).to(dtype) for x in tensors), backend=backend).double()

    first, second = torch.randn(2, 4, 4)
    pairs = [
        (partial(scaled, backend='torch'), scaled),
        (partial(scaled, backend='cpu', dtype=torch.float32), scaled),
        (lambda c: linear(c * first, c * second), lambda c: c**2 * first @ second.t()),
        *(
            (lambda c, f=f, a=a, b=b: f(c * a, c * b), lambda c, f=f, a=a, b=b: c**2 * f(a, b))
            for f, a, b in bilinear().values()
        ),
    ]
    for function, expected in pairs:
        c = torch.tensor(0.9)
        got, expected = (jacfwd(jacfwd(f))(c) for f in (function, expected))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3, check_dtype=False)


@pytest.mark.parametrize('name', FAMILIES)
def test_gradient_penalty(name):
    """The gradient of a norm of a gradient, against central differences, in fp64.

    torch's fused attention has none; its own context chooses the one that has.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1).eval().double()
    x = torch.randn(1, *model.pretrained_cfg['input_size'], dtype=torch.float64, requires_grad=True)

    def penalty():
        with sdpa_kernel(SDPBackend.MATH):
            (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return g.square().sum()

    weight = next(p for n, p in model.named_parameters() if n.endswith(('in_proj.weight', 'qkv.weight')))
    (got,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn_like(weight)
    step = 1e-5 * direction / direction.norm()
    with torch.no_grad():
        weight.add_(step)
    above = penalty().item()
    with torch.no_grad():
        weight.sub_(2 * step)
    expected = (above - penalty().item()) / 2
    assert (got * step).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('name', FAMILIES)
def test_torch_func(name):
    """Per-sample gradients by vmap are those of a loop; a tangent is the gradient's product with it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    params = {k: p.detach() for k, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    images = torch.randn(2, *model.pretrained_cfg['input_size'])

    def loss(params, image):
        return functional_call(model, (params, buffers), (image[None],)).square().sum()

    together = vmap(grad(loss), (None, 0))(params, images)
    for i in range(2):
        model.zero_grad()
        model(images[i : i + 1]).square().sum().backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(together[key][i], p.grad, rtol=1e-3, atol=1e-4)
    direction = torch.randn_like(images[0])
    _, tangent = jvp(lambda image: loss(params, image), (images[0],), (direction,))
    product = (grad(loss, 1)(params, images[0]) * direction).sum()
    torch.testing.assert_close(tangent, product, rtol=1e-3, atol=1e-4)
