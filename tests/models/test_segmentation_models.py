"""The pyramids serve as encoders of segmentation_models_pytorch, by their name in timm."""

import pytest
import segmentation_models_pytorch as smp
import torch

import visionssm  # noqa: F401

PYRAMIDS = [
    'test_vmamba',
    'test_msvmamba',
    'test_msvmambav3',
    'test_groupmamba',
    'test_a2mamba',
    'test_mambavision',
    'test_mambaout',
]
DECODERS = [
    (smp.Unet, {}),
    (smp.UnetPlusPlus, {}),
    (smp.MAnet, {}),
    (smp.Linknet, {}),
    (smp.FPN, {}),
    (smp.PSPNet, {}),
    (smp.PAN, {'encoder_output_stride': 16}),
    (smp.DeepLabV3, {'encoder_output_stride': 8}),
    (smp.DeepLabV3Plus, {'encoder_output_stride': 16}),
    (smp.UPerNet, {}),
    (smp.Segformer, {}),
    (smp.DPT, {'encoder_depth': 4, 'decoder_readout': 'ignore'}),
]


@pytest.mark.parametrize(('decoder', 'args'), DECODERS, ids=lambda x: getattr(x, '__name__', ''))
@pytest.mark.parametrize('name', PYRAMIDS)
def test_encoder(name, decoder, args):
    if 'encoder_output_stride' in args and name == 'test_mambaout':
        pytest.skip("timm's own has no output_stride")
    torch.manual_seed(0)
    model = decoder(f'tu-{name}', encoder_weights=None, in_channels=1, classes=3, **args)
    height, width = 128, 160  # smp asks for whole strides, PAN for a last map of eight
    masks = model(torch.randn(2, 1, height, width))
    assert masks.shape == (2, 3, height, width)
    masks.square().mean().backward()
    encoder = dict(model.encoder.named_parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.values())
    assert all(p.grad.isfinite().all() for p in encoder.values() if p.grad is not None)
