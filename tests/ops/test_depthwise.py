"""Depthwise convolutions and GELU in C++: the values of their modules, and these themselves where one could tell."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionssm.layers import SS2D, DepthwiseConv, Mlp
from visionssm.layers.functional import activated_at_once, causal_silu_at_once
from visionssm.layers.mamba import CausalConv1d
from visionssm.ops import (
    available_backends,
    convolution_cpu,
    depthwise_at_once,
    linear_gelu_at_once,
    onednn,
    use_backend,
)

pytestmark = pytest.mark.skipif(
    bool(available_backends()['cpu']) or not onednn.ON_X86, reason='no C++ kernel, or not on this kind of machine'
)


ACTIVATIONS = {'none': lambda y: y, 'gelu': F.gelu, 'silu': F.silu}
# rows, columns, zeros above and left, dilation: 3x3, 7x7, causal, that backwards, dilated, wider than the map, even
KERNELS = [
    (3, 3, (1, 1), (1, 1)),
    (7, 7, (3, 3), (1, 1)),
    (1, 4, (0, 3), (1, 1)),
    (1, 4, (0, 0), (1, 1)),
    (3, 5, (2, 6), (2, 3)),
    (1, 31, (0, 30), (1, 1)),
    (2, 2, (0, 1), (1, 1)),
]


@pytest.mark.parametrize('shape', [(2, 5, 4, 19), (1, 1, 1, 3), (1, 2, 2, 16), (0, 3, 3, 4), (2, 9, 11, 40)], ids=str)
@pytest.mark.parametrize('kernel', KERNELS, ids=str)
def test_values(kernel, shape):
    torch.manual_seed(0)
    rows, columns, padding, dilation = kernel
    channels = shape[-1]
    x = torch.randn(*shape[:3], 2 * channels)[..., :channels]  # as half of a projection
    weight, bias = torch.randn(channels, 1, rows, columns), torch.randn(channels)
    (top, bottom), (left, right) = (
        (zeros, (side - 1) * step - zeros) for side, zeros, step in zip((rows, columns), padding, dilation, strict=True)
    )
    padded = F.pad(x.double().permute(0, 3, 1, 2), (left, right, top, bottom))
    assert tuple(ACTIVATIONS) == convolution_cpu.ACTIVATIONS
    for mirrored in (False, True):
        w = weight.flip(2, 3) if mirrored else weight
        plain = F.conv2d(padded, w.double(), bias.double(), dilation=dilation, groups=channels).permute(0, 2, 3, 1)
        for name, activate in ACTIVATIONS.items():
            for shortcut in (False, True):
                got = convolution_cpu.depthwise(x, weight, bias, name, padding, dilation, mirrored, shortcut)
                expected = activate(plain + x if shortcut else plain)
                torch.testing.assert_close(got.double(), expected, rtol=3e-6, atol=1e-5)


@pytest.mark.parametrize('backwards', [False, True])
def test_causal(backwards):
    torch.manual_seed(0)
    conv, x = CausalConv1d(19, 4), torch.randn(2, 9, 38)[..., :19]
    conv.backwards = backwards
    expected = F.silu(conv(x.transpose(1, 2)).transpose(1, 2))
    assert causal_silu_at_once(x, conv, backwards, CausalConv1d) is None  # gradients
    with torch.inference_mode():
        torch.testing.assert_close(causal_silu_at_once(x, conv, backwards, CausalConv1d), expected)
        assert causal_silu_at_once(x, conv, backwards, nn.Conv1d) is None
        conv.register_forward_hook(lambda *args: None)
        assert causal_silu_at_once(x, conv, backwards, CausalConv1d) is None


def test_modules_that_must_be_called():
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 5, 6, 8)
    assert activated_at_once(x, conv, nn.SiLU()) is None  # gradients
    with torch.no_grad():
        assert activated_at_once(x, conv, nn.SiLU()) is not None
        assert activated_at_once(x, conv, nn.ReLU()) is None
        assert activated_at_once(x, conv, nn.GELU('tanh')) is None
        assert activated_at_once(x.double(), conv, nn.SiLU()) is None
        for other in ({'padding': 2}, {'padding': 'same'}, {'stride': 2}, {'padding_mode': 'circular'}, {'groups': 4}):
            args = {'padding': 1, 'groups': 8, **other}
            assert activated_at_once(x, nn.Conv2d(8, 8, 3, **args), nn.SiLU()) is None
        wide = nn.Conv2d(8, 8, (3, 5), padding=(2, 2), dilation=(2, 1), groups=8)
        torch.testing.assert_close(activated_at_once(x, wide, 'none'), wide(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        conv.register_forward_hook(lambda *args: None)
        assert activated_at_once(x, conv, nn.SiLU()) is None


def test_mixer_asks_for_it(monkeypatch):
    mixer, x = SS2D(8, gate=True).eval(), torch.randn(2, 5, 6, 8)
    expected = mixer(x)
    monkeypatch.setattr(nn.Conv2d, 'forward', None)
    with torch.inference_mode():
        assert torch.allclose(mixer(x), expected, atol=1e-6)


def test_module():
    conv, x = DepthwiseConv(19, 5), torch.randn(2, 6, 7, 19)
    expected = conv(x)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), expected)
        conv.register_forward_hook(lambda *args: torch.zeros_like(args[2]))
        assert not conv(x).any()


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(1 << 12, 8), (331, 100), (5, 7, 1000)], ids=str)
def test_gelu(shape, bias):
    x = torch.linspace(-12, 12, math.prod(shape)).view(shape)
    x.view(-1)[7:14] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-30, 3e38, -3e38])
    offset = torch.randn(shape[-1]) if bias else None
    expected = F.gelu(x.double() + offset if bias else x.double()).float()
    convolution_cpu.activate(x, offset, 'gelu')
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_linear_with_gelu():
    layer, x = nn.Linear(20, 130), torch.randn(2, 15, 20, 40)[..., ::2]
    expected = F.gelu(layer(x))
    assert linear_gelu_at_once(x, layer.weight, layer.bias) is None  # gradients
    with torch.no_grad():
        torch.testing.assert_close(linear_gelu_at_once(x, layer.weight, layer.bias), expected, rtol=1e-5, atol=1e-6)
        plain = linear_gelu_at_once(x, layer.weight, None)
        torch.testing.assert_close(plain, F.gelu(F.linear(x, layer.weight)), rtol=1e-5, atol=1e-6)
        strided = torch.randn(130, 2)[:, 0]
        torch.testing.assert_close(
            linear_gelu_at_once(x, layer.weight, strided),
            F.gelu(F.linear(x, layer.weight, strided)),
            rtol=1e-5,
            atol=1e-6,
        )
        for other in (x[:1, :1], x[:0], x.double(), x.bfloat16(), x.to('meta')):
            assert linear_gelu_at_once(other, layer.weight.to(other), layer.bias.to(other)) is None
        for bias in (torch.ones(1), torch.ones(()), torch.ones(3), torch.ones(200)):  # torch broadcasts or refuses
            assert linear_gelu_at_once(x, layer.weight, bias) is None
        assert linear_gelu_at_once(x, layer.weight[0], None) is None
        with use_backend('linear=torch'):
            assert linear_gelu_at_once(x, layer.weight, layer.bias) is None


def test_mlp_asks_for_it(monkeypatch):
    mlp, x = Mlp(32, 256).eval(), torch.randn(2, 20, 20, 32)
    expected = mlp(x)
    seen = []
    with torch.inference_mode():
        with monkeypatch.context() as patch:
            patch.setattr(nn.GELU, 'forward', None)
            torch.testing.assert_close(mlp(x), expected, rtol=1e-5, atol=1e-6)
        mlp.fc1.register_forward_hook(lambda module, args, y: seen.append(y))
        torch.testing.assert_close(mlp(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen[0], mlp.fc1(x))
        mlp.act = nn.ReLU()
        assert not torch.allclose(mlp(x), expected, atol=1e-3)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'padding': (1, 3)}, r'from 0 to \(2, 2\)'),
        ({'padding': (-1, 1)}, 'padding'),
        ({'dilation': (1, 0)}, 'at least 1'),
        ({'padding': (1,)}, r'padding \(1,\)'),
        ({'bias': torch.zeros(3)}, r'bias has shape \(3,\); expected \(16,\)'),
        ({'activation': 'relu'}, "'relu'; allowed are none, gelu, silu"),
        ({'weight': torch.zeros(16, 2, 3, 3)}, 'kernel'),
        ({'weight': torch.zeros(16, 1, 0, 3)}, 'kernel'),
    ],
)
def test_what_does_not_fit(change, message):
    arguments = {'weight': torch.randn(16, 1, 3, 3), 'bias': None, 'activation': 'none', 'padding': (1, 1)}
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        depthwise_at_once(torch.randn(1, 2, 8, 16), **{**arguments, **change})
