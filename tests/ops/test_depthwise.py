"""Depthwise convolutions in C++: the values of their modules, and the modules themselves where one could tell."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionssm.layers import SS2D
from visionssm.layers.functional import activated_at_once
from visionssm.ops import available_backends, convolution_cpu, depthwise_at_once, onednn

pytestmark = pytest.mark.skipif(
    bool(available_backends()['cpu']) or not onednn.ON_X86, reason='no C++ kernel, or not on this kind of machine'
)


@pytest.mark.parametrize('shape', [(2, 5, 4, 19), (1, 1, 1, 3), (1, 2, 2, 16), (0, 3, 3, 4), (2, 9, 11, 40)], ids=str)
def test_values(shape):
    torch.manual_seed(0)
    channels = shape[-1]
    x = torch.randn(*shape[:3], 2 * channels)[..., :channels]  # as half of a projection
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    plain = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), padding=1, groups=channels)
    activations = {'none': lambda y: y, 'gelu': F.gelu, 'silu': F.silu}
    assert tuple(activations) == convolution_cpu.ACTIVATIONS
    for name, activate in activations.items():
        got = convolution_cpu.depthwise(x, weight, bias, name)
        torch.testing.assert_close(got.double(), activate(plain).permute(0, 2, 3, 1), rtol=3e-6, atol=3e-6)


def test_modules_that_must_be_called():
    conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 5, 6, 8)
    assert activated_at_once(x, conv, nn.SiLU()) is None  # gradients
    with torch.no_grad():
        assert activated_at_once(x, conv, nn.SiLU()) is not None
        assert activated_at_once(x, conv, nn.ReLU()) is None
        assert activated_at_once(x, conv, nn.GELU('tanh')) is None
        assert activated_at_once(x.double(), conv, nn.SiLU()) is None
        assert depthwise_at_once(x[0], conv.weight, conv.bias, 'silu') is None
        for other in ({'dilation': 2, 'padding': 2}, {'stride': 2}, {'padding_mode': 'circular'}, {'groups': 4}):
            args = {'padding': 1, 'groups': 8, **other}
            assert activated_at_once(x, nn.Conv2d(8, 8, 3, **args), nn.SiLU()) is None
        conv.register_forward_hook(lambda *args: None)
        assert activated_at_once(x, conv, nn.SiLU()) is None


def test_mixer_asks_for_it(monkeypatch):
    mixer, x = SS2D(8, gate=True).eval(), torch.randn(2, 5, 6, 8)
    expected = mixer(x)
    monkeypatch.setattr(nn.Conv2d, 'forward', None)
    with torch.inference_mode():
        assert torch.allclose(mixer(x), expected, atol=1e-6)
